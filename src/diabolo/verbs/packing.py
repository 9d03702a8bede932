"""The verb that writes a data set as files to be mapped into memory, and the check that reads all of them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from diabolo import config
from diabolo.data import shards
from diabolo.errors import DataError
from diabolo.listings import megabytes
from diabolo.options import DataOptions, Imports, Json, import_modules
from diabolo.verbs.shared import Answer, progress


def pack(
    source: Annotated[str, Parameter(help="An image folder, folder:PATH, or a data set (see `diabolo data list`).")],
    out: Annotated[Path, Parameter(help="The folder to write; it must not exist.")],
    /,
    *params: Annotated[str, Parameter(help="key=value of the data set, for example size=64 or data.colour=grey")],
    import_: Imports = (),
    as_json: Json = False,
    options: DataOptions = DataOptions(),
) -> Answer:
    """Decode images once into files that training maps into memory; for more images than memory holds.

    Train on them with data=packed:OUT. Splits, order and batches are those of the source.
    """
    import_modules(import_)
    component = config.resolve("vae", [f"data={source}", *map(_key, params)]).config.data
    shards.check_new(out)
    from diabolo.data.packing import pack as write

    with progress() as shown:
        index = write(component.name, component.params, out, options.access(), shown)
    if as_json:
        return Answer(data=index.to_dict())
    return Answer((
        f"{index.images:,} images of {' x '.join(map(str, index.shape))}, {megabytes(index.bytes)}: {out}",
        f"Train on it with: diabolo train vae {shlex.quote(f'data=packed:{out}')}",
    ))


def _key(text: str) -> str:
    """data.size=64, or shorter size=64."""
    return text if text.startswith("data.") else f"data.{text}"


def check(folder: Path, as_json: bool) -> Answer:
    """Read all shards of a packed set and compare them with its index.

    Raises:
        DataError: if one is not what the index says.
    """
    with progress() as shown:
        shown.start("checking", shards.read(folder).bytes)
        checks = shards.verify(folder, shown.advance)
        shown.finish()
    bad = [check for check in checks if not check.ok]
    if bad:
        raise DataError(
            f"{', '.join(str(check.file) for check in bad)}: not what was packed",
            "; ".join(f"SHA-256 {check.sha256[:16]}... is not that of the index" for check in bad),
            shards.AGAIN,
        )
    rows: list[dict[str, Any]] = [
        {"file": str(check.file), "bytes": check.size, "sha256": check.sha256, "ok": check.ok} for check in checks
    ]
    if as_json:
        return Answer(data=rows)
    return Answer(tuple(f"ok   {row['bytes']:>15,} B  {row['sha256'][:16]}  {row['file']}" for row in rows))
