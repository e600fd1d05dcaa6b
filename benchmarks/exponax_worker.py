"""Spectral Burgers by exponax, for an interpreter that has it: one line of JSON says what, each further line asks for a run."""

import json
import sys
import time


def main() -> None:
    order = json.loads(sys.stdin.readline())
    import exponax  # pyright: ignore[reportMissingImports]
    import jax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

    jax.config.update("jax_enable_x64", True)
    dt = order["end"] / order["steps"]
    stepper = exponax.stepper.Burgers(1, 1.0, order["n"], dt, diffusivity=order["viscosity"], conservative=True, order=4)
    solve = jax.vmap(exponax.repeat(stepper, order["steps"]))
    run = jax.jit(jax.grad(lambda u: jnp.sum(solve(u) ** 2)) if order["backward"] else solve)
    u0 = jnp.array(order["u0"])[:, None, :]
    begin = time.perf_counter()
    found = run(u0).block_until_ready()
    print(
        "=>" + json.dumps({"version": exponax.__version__, "compile": time.perf_counter() - begin, "u": found[0, 0].tolist()}), flush=True
    )
    for _ in sys.stdin:
        begin = time.process_time()
        run(u0).block_until_ready()
        print("=>" + json.dumps(time.process_time() - begin), flush=True)


if __name__ == "__main__":
    main()
