"""One problem by diffrax, for an interpreter that has it: the first line says which, each further line asks for runs or for an answer."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def main() -> None:
    import diffrax  # pyright: ignore[reportMissingImports]
    import jax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

    from problems import PROBLEMS, field  # pyright: ignore[reportAttributeAccessIssue] # of this folder

    jax.config.update("jax_enable_x64", True)
    order = json.loads(sys.stdin.readline())
    problem = PROBLEMS[order["problem"]]
    f, y0 = field(problem, jnp), jnp.array(problem.y0)
    calls = [0]

    def count() -> None:
        calls[0] += 1

    def counted(t, y, args):
        jax.debug.callback(count)
        return f(t, y)

    def solving(func):
        def solve(tolerance):
            control = diffrax.PIDController(rtol=tolerance, atol=problem.atol * tolerance)
            solver = getattr(diffrax, order["method"])()
            found = diffrax.diffeqsolve(
                diffrax.ODETerm(func), solver, 0.0, problem.end, None, y0, stepsize_controller=control, max_steps=1_000_000
            )
            return found.ys[-1], found.stats["num_accepted_steps"]

        return jax.jit(solve)

    run, counting = solving(lambda t, y, args: f(t, y)), solving(counted)
    print("=>{}", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        tolerance = asked["tolerance"]
        if asked["repeats"]:
            begin = time.process_time()
            for _ in range(asked["repeats"]):
                jax.block_until_ready(run(tolerance))
            print("=>" + json.dumps((time.process_time() - begin) / asked["repeats"]), flush=True)
            continue
        begin = time.perf_counter()
        y, steps = jax.block_until_ready(run(tolerance))
        first = time.perf_counter() - begin
        calls[0] = 0
        jax.block_until_ready(counting(tolerance))
        jax.effects_barrier()
        print("=>" + json.dumps({"y": y.tolist(), "steps": int(steps), "evaluations": calls[0], "first": first}), flush=True)


if __name__ == "__main__":
    main()
