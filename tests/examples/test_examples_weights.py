"""Examples about what evolves: a medium that is found, kernels that move, weights that are waves."""

from __future__ import annotations

from pathlib import Path

import pytest

import kernel_evolution
import learn_medium
import weight_path
import weights_as_waves


@pytest.mark.slow
def test_recordings_tell_the_medium_up_to_the_noise(tmp_path: Path) -> None:
    result = learn_medium.main(tmp_path / "picture.png", n=60, iterations=15)
    assert result["error_after"] < 0.03 < 0.13 < result["error_before"]
    assert result["misfit_before"] > 4 and result["misfit_after"] == pytest.approx(1.0, abs=0.1)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_kernels_grow_blur_and_come_back(tmp_path: Path) -> None:
    result = kernel_evolution.main(tmp_path / "picture.png", size=5, frames=3)
    assert result["mean"] < 1e-12 and result["period"] < 1e-10 and result["rk4"] < 1e-6
    assert 0.1 < result["blurred"] < 1
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "picture.gif").read_bytes().startswith(b"GIF8")


def test_the_path_of_weights_follows_its_law_and_is_drawn(tmp_path: Path) -> None:
    from PIL import Image

    result = weight_path.main(tmp_path / "picture.png", size=5, times=4)
    assert result["law"] < 1e-4 and result["change"] > 1 and 0.5 < result["norm"] < 1
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    with Image.open(tmp_path / "picture.gif") as frames:
        assert frames.n_frames == 4  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_a_layer_of_waves_learns_like_a_standing_one(tmp_path: Path) -> None:
    result = weights_as_waves.main(tmp_path / "picture.png", epochs=4, share=0.25)
    assert result["static"] > 20 and result["wave"] > 20
    assert result["gradient_speed"] > 1e-5 and result["gradient_velocity"] > 1e-3
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
