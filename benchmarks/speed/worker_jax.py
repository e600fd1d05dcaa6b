"""The MLP workload in JAX, for an interpreter that has jax and diffrax: the same orders and answers as worker.py."""

import json
import sys
import time


def main() -> None:
    order = json.loads(sys.stdin.readline())
    import diffrax  # pyright: ignore[reportMissingImports]
    import jax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    import numpy as np

    steps, dt = order["size"], 1.0 / order["size"]
    keys = jax.random.split(jax.random.PRNGKey(0), 3)
    y0 = jax.random.normal(keys[0], (128, 16))
    weights = {
        "a": jax.random.normal(keys[1], (16, 64)) / 4,
        "b": jnp.zeros(64),
        "c": jax.random.normal(keys[2], (64, 16)) / 8,
        "d": jnp.zeros(16),
    }

    def f(t, y, w):
        return jnp.tanh(y @ w["a"] + w["b"]) @ w["c"] + w["d"]

    classical = diffrax.ButcherTableau(  # which diffrax does not have; its error estimate is not used
        c=np.array([0.5, 0.5, 1.0]),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        b_error=np.zeros(4),
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
    )

    class Classical(diffrax.AbstractERK):
        tableau = classical
        interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

        def order(self, terms):
            return 4

    def with_diffrax(y, w):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(f),
            Classical(),
            0.0,
            1.0,
            dt,
            y,
            args=w,
            adjoint=diffrax.RecursiveCheckpointAdjoint(),
            stepsize_controller=diffrax.ConstantStepSize(),
            max_steps=steps + 1,
        )
        return jnp.sum(solution.ys[-1] ** 2)

    def with_scan(y, w):
        def step(y, _):
            k1 = f(0.0, y, w)
            k2 = f(0.0, y + dt / 2 * k1, w)
            k3 = f(0.0, y + dt / 2 * k2, w)
            k4 = f(0.0, y + dt * k3, w)
            return y + dt / 6 * (k1 + 2 * (k2 + k3) + k4), None

        return jnp.sum(jax.lax.scan(step, y, None, length=steps)[0] ** 2)

    gradient = jax.jit(jax.grad({"diffrax": with_diffrax, "jax scan": with_scan}[order["contender"]], argnums=(0, 1)))
    run = lambda: jax.block_until_ready(gradient(y0, weights))  # noqa: E731
    begin = time.perf_counter()
    found = run()
    norms = [float(jnp.linalg.norm(g)) for g in jax.tree.leaves(found)]
    print("=>" + json.dumps({"first": time.perf_counter() - begin, "peak": None, "norms": norms, "units": 1}), flush=True)
    for line in sys.stdin:
        repeats = json.loads(line)["repeats"]
        begin = time.process_time()
        for _ in range(repeats):
            run()
        print("=>" + json.dumps({"seconds": (time.process_time() - begin) / repeats}), flush=True)


if __name__ == "__main__":
    main()
