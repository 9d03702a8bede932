"""The verb that takes noise away: denoise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from diabolo.errors import UsageError
from diabolo.options import Device, Imports, Json, RunPath
from diabolo.verbs.shared import Answer, Overwrite, check_target, how_read, ready

if TYPE_CHECKING:
    from diabolo.denoising import Cell, Denoised
    from diabolo.inspection import Examples
    from diabolo.runs import Run

_DEFAULT_LEVEL = 0.3


def denoise(
    run: RunPath,
    source: Annotated[Path, Parameter(help="IN: noisy images: an image, a folder of images, a .npy or .npz file.")],
    out: Annotated[Path, Parameter(help="OUT: a .png file for one image, a folder for PNG files, or a .npy file.")],
    /,
    *,
    noise: Annotated[
        Literal["none", "gaussian", "masking", "salt_pepper"],
        Parameter(help="A demonstration: put noise on clean images first, and measure."),
    ] = "none",
    level: Annotated[
        float | None,
        Parameter(
            help="Of that noise: its standard deviation (gaussian), or the share of pixels that it changes; "
            f"{_DEFAULT_LEVEL} where it is left out."
        ),
    ] = None,
    seed: Annotated[int, Parameter(help="Of that noise.")] = 0,
    overwrite: Overwrite = False,
    import_: Imports = (),
    device: Device = "auto",
    as_json: Json = False,
) -> Answer:
    """Write what a run makes of noisy images: its reconstruction at the code's mean. Made for a denoising autoencoder (dae)."""
    level = _checked(noise, level)
    ready(run, None, None, None, overwrite, import_, ())
    check_target(out, (".npy", ".png"), overwrite)
    from diabolo import denoising
    from diabolo.engine import pick_device
    from diabolo.runs import Run

    opened = Run(run)
    given = denoising.noisy_examples(opened, source)
    _check_pictures(opened, given, out)
    found = denoising.denoise(opened, given, noise, level, seed=seed, device=pick_device(device))
    _write(opened, found, out)
    if as_json:
        return Answer(data=_numbers(opened, found, out, noise, level))
    return Answer((*how_read(given), *_told(opened, found, out, noise, level)))


def _checked(noise: str, level: float | None) -> float:
    """The level, which has a meaning only with noise."""
    if noise == "none" and level is not None:
        raise UsageError(
            f"--level {level:g} is refused", "It belongs to noise that is put on.", "Add --noise gaussian."
        )
    level = _DEFAULT_LEVEL if level is None else level
    most = float("inf") if noise == "gaussian" else 1.0
    if not 0 <= level <= most or level == float("inf"):
        why = (
            "A standard deviation is at least 0."
            if noise == "gaussian"
            else "It is a share of the pixels, from 0 to 1."
        )
        raise UsageError(f"--level {level:g} is refused", why)
    return level


def _check_pictures(run: Run, given: Examples, out: Path) -> None:
    """Refuse pictures of what is none, and one file for several images, before any work."""
    about = run.env["data"]["spec"]
    count = len(given.loader())
    if out.suffix.lower() == ".npy":
        return
    if about["values"] == "real" or len(about["shape"]) != 3 or about["shape"][0] not in (1, 3):
        raise UsageError("the run's data are no pictures", f"Their shape is {about['shape']}.", "Choose a .npy file.")
    if out.suffix and count != 1:
        raise UsageError(f"{out} would hold {count:,} images", remedy="Name a folder (without a dot) or a .npy file.")


def _write(run: Run, found: Denoised, out: Path) -> None:
    from diabolo import compression

    stored = compression.as_stored(found.values, run.env["data"]["spec"]["values"])
    if out.suffix.lower() == ".npy":
        compression.write_array(out, stored)
    elif out.suffix:
        compression.write_image(out, stored[0])
    else:
        compression.write_images(out, stored)


def _told(run: Run, found: Denoised, out: Path, noise: str, level: float) -> tuple[str, ...]:
    n = len(found.values)
    first = f"{out}: {n:,} image{'' if n == 1 else 's'}, the decoder's mean at the code of the noisy one"
    if found.before is None or found.after is None:
        return first, _trained(run)
    before, after = (_cell(cell, run.env["data"]["spec"]["values"] == "real") for cell in (found.before, found.after))
    put = f"{noise} noise of {level:g} was put on: before {before}, after {after}, n = {n:,}"
    return first, _trained(run), put


def _trained(run: Run) -> str:
    from diabolo.denoising import trained_noise

    known = trained_noise(run)
    if known is None:
        return "this run was not trained on noise: what it takes away is what its code cannot hold (better: diabolo train dae)"
    return f"the run was trained on {known[0]} noise of {known[1]:g}; noise of another kind or level is left to chance"


def _cell(cell: Cell, real: bool) -> str:
    if real:  # they have no peak
        return f"mean squared error {cell.mse:.6f}"
    spread = "" if cell.psnr_se is None else f" +- {cell.psnr_se:.2f}"
    likeness = "" if cell.ssim is None else f", SSIM {cell.ssim:.3f}"
    return f"PSNR {cell.psnr:.2f}{spread} dB{likeness}"


def _numbers(run: Run, found: Denoised, out: Path, noise: str, level: float) -> dict[str, Any]:
    from diabolo.denoising import trained_noise

    return {
        "out": str(out),
        "n": len(found.values),
        "trained_on": trained_noise(run),
        "noise": None if noise == "none" else {"kind": noise, "level": level},
        **{when: _measured(run, cell) for when, cell in (("before", found.before), ("after", found.after))},
    }


def _measured(run: Run, cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    real = run.env["data"]["spec"]["values"] == "real"
    return {"mse": cell.mse, "n": cell.n} if real else cell.to_dict()


VERBS = (denoise,)
