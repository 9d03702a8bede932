"""Verbs that write examples as a bitstream and read them back: compress, decompress."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from diabolo.errors import UsageError
from diabolo.options import DataOptions, Device, Imports, Json, RunPath
from diabolo.verbs.shared import Answer, Overwrite, SplitName, check_file, check_target, given, how_read, ready

if TYPE_CHECKING:
    from diabolo.compression import Compressed
    from diabolo.inspection import Examples


def compress(
    run: RunPath,
    source: Annotated[
        Path,
        Parameter(help="IN: a .npy or .npz file, an image, a folder of images. Left out, the run's own data are read."),
    ],
    out: Annotated[Path | None, Parameter(help="OUT: the .dia file to write.")] = None,
    /,
    *,
    bits: Annotated[
        int | None,
        Parameter(
            help="Bits a code dimension, 1 to 12. Left out: steps of the posterior's standard deviation, which suit a "
            "VAE better; 6 bits where it has none (dirac)."
        ),
    ] = None,
    split: SplitName = None,
    overwrite: Overwrite = False,
    import_: Imports = (),
    device: Device = "auto",
    as_json: Json = False,
    options: DataOptions = DataOptions(),
) -> Answer:
    """Write examples as a file of quantised, entropy-coded codes: compress RUN IN OUT, or compress RUN OUT --split test."""
    path, target = (None, source) if out is None else (source, out)
    ready(run, path, split, None, overwrite, import_, ())
    check_file(target, (".dia",), overwrite)
    if bits is not None and not 1 <= bits <= 12:
        raise UsageError(f"--bits {bits} is refused", "It must be from 1 to 12.")
    from diabolo import compression
    from diabolo.engine import pick_device

    opened, chosen = given(run, path, split, options)
    where = pick_device(device)
    found = compression.compress(opened, chosen, target, bits=bits, access=options.access(), device=where)
    return Answer(data=_numbers(found, target)) if as_json else Answer(_told(found, chosen, run, target))


def _told(found: Compressed, chosen: Examples, run: Path, target: Path) -> tuple[str, ...]:
    unit = "bits/pixel" if found.image else "bits/value"
    exact = f"mean squared error {found.mse:.6f}"
    examples = f"{found.count:,} example{'' if found.count == 1 else 's'}"
    return (
        *how_read(chosen),
        f"{target}: {examples} ({chosen.source}), {found.size:,} bytes, {found.bits_per_pixel:.4f} {unit}",
        f"  ideal code length {found.ideal_bits / 8:,.1f} bytes ({found.ideal_bits_per_pixel:.4f} {unit}), "
        f"stream {found.stream:,}, header and checksum {found.size - found.stream}",
        f"  decoded (mean of the decoder): {exact if found.psnr is None else f'PSNR {found.psnr:.2f} dB, {exact}'}",
        f"  not counted, and needed to decode: the weights ({found.weights_size:,} bytes) and {found.codec} "
        f"({found.codec_size:,} bytes)",
        f"  read it with: diabolo decompress {run} {target} OUT",
    )


def _numbers(found: Compressed, target: Path) -> dict[str, Any]:
    return {
        "out": str(target),
        "n": found.count,
        "bytes": found.size,
        "stream_bytes": found.stream,
        "ideal_bytes": found.ideal_bits / 8,
        "unit": "bits/pixel" if found.image else "bits/value",
        "rate": found.bits_per_pixel,
        "ideal_rate": found.ideal_bits_per_pixel,
        "psnr": found.psnr,
        "mse": found.mse,
        "not_counted": {
            "codec": str(found.codec),
            "codec_bytes": found.codec_size,
            "weights_bytes": found.weights_size,
        },
    }


def decompress(
    run: RunPath,
    source: Annotated[Path, Parameter(help="IN: a .dia file that compress made with this run.")],
    out: Annotated[Path, Parameter(help="OUT: a .npy file, or a folder for PNG files.")],
    /,
    *,
    overwrite: Overwrite = False,
    import_: Imports = (),
    device: Device = "auto",
) -> Answer:
    """Write what the decoder makes of a .dia file: a .npy file of levels 0..255 (or real numbers), or a folder of PNG files."""
    ready(run, None, None, None, overwrite, import_, ())
    check_target(out, (".npy",), overwrite)
    from diabolo import compression
    from diabolo.engine import pick_device
    from diabolo.runs import Run

    stored = compression.decompress(Run(run), source, device=pick_device(device))
    if out.suffix:
        compression.write_array(out, stored)
    else:
        compression.write_images(out, stored)
    kind = "levels 0..255" if stored.dtype == "uint8" else "real numbers"
    return Answer((f"{out}: {len(stored):,} of shape {stored.shape[1:]}, {kind}",))


VERBS = (compress, decompress)
