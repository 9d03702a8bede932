"""Write the generated parts of both READMEs: the preset table, the results table from a finished MNIST chapter, and those of the
chapters of autoencoders and CIFAR-10, of sharp pictures and of `make bench` from what is kept in results/.

The results stay as they are where the chapter is not finished. With --check nothing is written, and the exit code is 1 if
a file would change.
"""

from __future__ import annotations

import json
import math
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diabolo import config
from diabolo.chapters import CHAPTERS
from diabolo.language import shown

ROOT = Path(__file__).parent.parent
CHAPTER = ROOT / "runs" / "reproduce" / "mnist"
MEASURES = ROOT / "results" / "autoencoders" / "measures.json"
CIFAR10 = ROOT / "results" / "cifar10"
SHARP = ROOT / "results" / "sharp"
SPEED = ROOT / "results" / "speed" / "bench.json"
READMES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
MODELS = ("Model 1", "Model 2", "Model 3")

Evaluations = Mapping[tuple[str, str], Mapping[str, Any]]  # (model, convention) -> evaluation.json

#: The sentences around the numbers, for each language.
WORDS: dict[str, dict[str, str]] = tomllib.loads(
    (Path(__file__).with_name("readme_words.toml")).read_text(encoding="utf-8")
)


def preset_table(language: str) -> str:
    """Every preset with its parts, reference and expected number."""
    rows = [_preset_row(name, config.read_preset(name)) for name in config.preset_names()]
    return _table(WORDS[language]["presets"], rows)


def _preset_row(name: str, preset: Mapping[str, Any]) -> str:
    model, about = preset["model"], preset["about"]
    parts = [model[slot]["name"] for slot in ("encoder", "posterior", "prior", "likelihood")]
    cells = [
        f"`{name}`",
        about["summary"],
        f"`{preset['data']['name']}`",
        ", ".join(f"`{part}`" for part in (*parts, preset["objective"]["name"])),
        about["reference"],
        about["expected"] or "-",
    ]
    return f"| {' | '.join(cells)} |"


def results(evaluations: Evaluations, published: Mapping[str, Mapping[str, float]], language: str) -> str:
    """Two tables, one for each likelihood family; every number is one of evaluation.json or of the article."""
    words, parts = WORDS[language], []
    for convention in ("grey", "binarized"):
        members = {model: evaluations[model, convention] for model in MODELS}
        first = members[MODELS[0]]
        rows = []
        for model, evaluation in members.items():
            rows.append(_measured(model, evaluation, words))
            if convention == "grey":
                rows.append(_published(words["article"].format(model=model), published[model]))
        parts += [words[convention], _caption(first, words), _table(words["columns"], rows)]
    chapter = CHAPTERS["mnist"]
    if chapter.seconds:
        parts.append(words["time"].format(minutes=chapter.seconds / 60, machine=chapter.machine))
    return "\n\n".join([*parts, words["compare"].strip()])


def autoencoders(measures: Mapping[str, Any], language: str) -> str:
    """Error by size, denoising and compression of the chapter of autoencoders, each number one of measures.json."""
    words = WORDS[language]
    bottleneck = [f"| d = {row['d']} | {_pm(row['ae'], 4)} | {_pm(row['pca'], 4)} |" for row in measures["bottleneck"]]
    gaussian = measures["denoising"]["gaussian"]
    levels = [0.1, 0.3, 0.5]
    denoised = []
    for name, cells in gaussian["rows"].items():
        at = [cells[gaussian["levels"].index(level)] for level in levels]
        shown = " | ".join(_pm({"value": cell["psnr"], "se": cell["psnr_se"]}, 2) for cell in at)
        better = gaussian["better_than_nothing"].get(name, {}).get("words", "-")
        title = words["denoising_model" if name == "denoising" else name]
        denoised.append(f"| {title} | {shown} | {better} |")
    points = [p for p in measures["compression"] if (p["method"], p["setting"]) in _POINTS]
    rates = [
        f"| {p['method']}, {p['setting']} | {p['bits_per_pixel']:.3f} | {p['psnr']:.2f} | {p['ssim']:.3f} |"
        for p in points
    ]
    chapter = CHAPTERS["autoencoders"]
    n = {"n": measures["bottleneck"][0]["ae"]["n"], "some": points[0]["n"]}
    return "\n\n".join([
        words["bottleneck"].strip().format(**n),
        _table(words["bottleneck_columns"], bottleneck),
        words["denoising"].strip().format(**n),
        _table(words["denoising_columns"], denoised),
        words["rates"].strip().format(**n),
        _table(words["rates_columns"], rates),
        words["chapter_time"].format(minutes=chapter.seconds / 60, machine=chapter.machine),
    ])


#: The points of rate and distortion that the READMEs show.
_POINTS = (
    ("autoencoder, d = 20", "4 bits"),
    ("autoencoder, d = 32", "4 bits"),
    ("VAE, d = 20", "steps of sd"),
    ("PCA, d = 32", "4 bits"),
    ("JPEG", "quality 10"),
    ("JPEG without headers", "quality 10"),
)


#: The closed-form lines that the READMEs show beside the networks.
_LINES = ("pPCA, q = 20, sigma^2 = 1/2", "pPCA, q = 256, ML sigma", "full covariance")


def cifar10(kept: Path, language: str) -> str:
    """The claims with their verdicts, and a row for each network and some closed-form lines, from what is kept in a folder."""
    words = WORDS[language]
    measures, evaluations, checked = (
        json.loads((kept / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("measures-locality", "evaluations-locality", "verification")
    )
    directions = measures["directions"]
    rows = [
        _network(words[name], evaluations[name], directions[name], words) for name in _NETWORKS if name in evaluations
    ]
    lines = {line["name"]: line for line in measures["linear"]["dequantized"]}
    rows += [_line(words[name], lines[name]) for name in _LINES]
    numbered = [(claim["number"], claim["verdict"]) for claim in measures["claims"]]
    facts = _facts(evaluations, directions)
    verdicts = [
        f"{number}. {words[verdict]}: {words[f'claim{number}'].format(**facts).strip()}" for number, verdict in numbered
    ]
    first = next(iter(evaluations.values()))
    caption = (
        words["cifar10"]
        .strip()
        .format(n=first["psnr"]["n"], epochs=measures["epochs"], samples=first["elbo"]["samples"])
    )
    time = words["cifar10_time"].format(minutes=checked["seconds"] / 60, machine=CHAPTERS["cifar10"].machine)
    return "\n\n".join(["\n".join(verdicts), caption, _table(words["cifar10_columns"], rows), time])


def _facts(evaluations: Mapping[str, Any], directions: Mapping[str, int]) -> dict[str, str]:
    """What the sentences of the claims say in numbers: c4_optimal_psnr and the like."""
    found = {}
    for run, evaluation in evaluations.items():
        shown = {
            "units": str(evaluation["active_units"]["value"]),
            "directions": str(directions[run]),
            "psnr": f"{evaluation['psnr']['value']:.2f}",
            "bits": f"{evaluation['bits_per_dim']['value']:.2f}",
            "elbo": _signed(f"{evaluation['elbo']['value']:.0f}"),
        }
        found |= {f"{run.replace('-', '_')}_{key}": text for key, text in shown.items()}
    return found


#: Runs in the order of the story.
_NETWORKS = ("c1", "c2", "c3", "c4", "c5-leaky", "c5-asymmetric", "c2-optimal", "c4-optimal", "c5-leaky-optimal")


def sharp(kept: Path, language: str) -> str:
    """The claims of the sharp chapter, its runs beside closed forms, and its table of samples, from what is kept in a folder."""
    from diabolo.chapters.sharp import WARMUP
    from diabolo.chapters.sharp_numbers import RIVAL
    from diabolo.chapters.sharp_words import NAMES, SETS

    words = WORDS[language]
    measures, bound, classifier = (
        json.loads((kept / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("measures", "sharp-60-bound", "classifier")
    )
    runs, gains, table = measures["runs"], measures["gains"], measures["samples"]
    models = []
    for name, title in NAMES.items():
        models.append(_sharp(shown(title, language), runs[name], gains.get(name)))
        if name == "sharp-60":
            models.append(_sharp(words["sharp_bound"], bound, None))
    lines = {line["latent"]: line for line in measures["linear"]["dequantized"]}
    models += [_sharp_line(words[f"sharp_line_{latent or 'full'}"], lines[latent]) for latent in (RIVAL, None)]
    facts = {
        **{f"{name.replace('-', '_')}_psnr": f"{row['psnr']['value']:.2f}" for name, row in runs.items()},
        **{f"{name.replace('-', '_')}_bits": f"{row['bits_per_dim']['value']:.3f}" for name, row in runs.items()},
        "n": f"{runs['sharp']['psnr']['n']:,}",
        "drawn": f"{table['about']['n']:,}",
        "accuracy": f"{100 * classifier['test']['accuracy']:.1f}",
        "gain": _pm(measures["priors"]["mixture"]["gain"], 1),
        "guidance": f"{measures['guidance']:g}",
        **_tried(kept, measures["guidance"]),
        "warmup": str(WARMUP),
        **_aimed({row["set"]: row for row in table["rows"]}),
        **_gap((row["bits_per_dim"]["value"] for row in [*runs.values(), bound]), lines[None]["bits_per_dim"]),
        "trained": f"{measures['pretrained']['seconds']:.0f}",
        "fitted": f"{measures['priors']['flow_matching']['seconds']:.0f}",
        "elsewhere": _cores(measures["pretrained"]["machine"]),
        "minutes": f"{sum(measures['stages'].values()) / 60:.0f}",
        "samples": f"{table['about']['spent'] / 60:.0f}",
        "longer": f"{runs['sharp-60']['seconds'] / 60:.0f}",
        "machine": _cores(measures["machine"]),
    }
    numbered = [(claim["number"], claim["verdict"]) for claim in measures["claims"]]
    claims = [
        f"{number}. {words[verdict]}: {words[f'sharp_claim{number}'].strip().format(**facts)}"
        for number, verdict in numbered
    ]
    samples = [_samples_of(shown(SETS[row["set"]], language), row) for row in table["rows"]]
    samples += [_samples_of(words[f"sharp_larger_{name}"], row) for name, row in _larger(kept, table)]
    return "\n\n".join([
        "\n".join(claims),
        words["sharp"].strip().format(**facts),
        _table(words["sharp_columns"], models),
        words["sharp_gap"].strip().format(**facts),
        words["sharp_samples"].strip().format(**facts),
        _table(words["sharp_sample_columns"], samples),
        words["sharp_features"].strip().format(**facts),
        _table(words["sharp_sample_columns"], _in_other_features(kept, table["about"], language)),
        words["sharp_time"].strip().format(**facts),
    ])


def _tried(kept: Path, guidance: float) -> dict[str, str]:
    """The strengths of guidance that were tried on both networks, and on how many training images.

    Raises:
        ValueError: if not both were tried alike, or another than `guidance` was the best.
    """
    tried = []
    for name in ("guidance", "guidance-60"):
        found = json.loads((kept / f"{name}.json").read_text(encoding="utf-8"))
        if min(found["rows"], key=lambda row: row["frechet"]["value"])["guidance"] != guidance:
            raise ValueError(f"{name}.json: guidance {guidance:g} is not the best")
        strengths = ", ".join(f"{row['guidance']:g}" for row in found["rows"])
        tried.append({"tried": strengths, "tried_on": f"{found['about']['n']:,}"})
    if tried[0] != tried[1]:
        raise ValueError(f"one network was tried with {tried[0]}, the other with {tried[1]}")
    return tried[0]


def _larger(kept: Path, table: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of the larger network, each measured by `measure` on its own, to be read beside those of a table.

    Raises:
        ValueError: if they were drawn or measured otherwise: on other data, in other features, beside other training images.
    """
    for name in ("flow", "flow-class"):
        found = _measured_samples(kept, f"sharp-60-{name}", table["about"], _COMPARED, _DRAWN[name])
        floor, theirs = (next(row for row in one["rows"] if row["kind"] == "floor") for one in (found, table))
        if not math.isclose(floor["frechet"]["value"], theirs["frechet"]["value"], rel_tol=1e-6):
            raise ValueError(f"sharp-60-{name}.json is no row of this table: training images")
        if name == "flow":
            yield "reconstructions", next(row for row in found["rows"] if row["kind"] == "reconstructions")
        yield name, next(row for row in found["rows"] if row["kind"] == "samples")


def _in_other_features(kept: Path, about: Mapping[str, Any], language: str) -> list[str]:
    """Rows of the sharp network in features that never saw the data.

    Raises:
        ValueError: if they were drawn otherwise, or measured of other data, or of another number of images.
    """
    from diabolo.chapters.sharp_words import SETS

    same = [key for key in _COMPARED if key != "features"]
    found = _measured_samples(kept, "sharp-efficientnet", about, same, _DRAWN["flow-class"])
    return [_samples_of(shown(SETS[_SETS_OF_MEASURE[row["set"]]], language), row) for row in found["rows"]]


def _measured_samples(kept: Path, name: str, about: Mapping[str, Any], same: Iterable[str], drawn: str) -> Any:
    """A kept samples.json, if it shares what must be the `same` with a table `about` these, and its samples were `drawn` so."""
    found = json.loads((kept / f"{name}.json").read_text(encoding="utf-8"))
    differ = [key for key in same if found["about"][key] != about[key]]
    if found["about"]["drawn"] != f"decoder means, {drawn}; prior: flow_matching, fitted to the codes":
        differ.append("drawn")
    if differ:
        raise ValueError(f"{name}.json is no row of this table: {', '.join(differ)}")
    return found


#: How the samples of a row were drawn.
_DRAWN = {"flow": "z ~ p(z)", "flow-class": "z ~ p(z | y), class each, guidance 3"}
#: What the chapter calls the sets of `measure`.
_SETS_OF_MEASURE = {
    "training images": "floor",
    "reconstructions": "reconstructions",
    "pPCA, q = 512": "ppca",
    "a Gaussian for each class, pixels": "gaussians",
    "samples of cifar10-sharp": "flow-class",
}
#: What two tables of samples share if their rows are to stand beside each other.
_COMPARED = ("data_hash", "reference", "train", "features", "n", "k", "quantile", "mirrored", "levels")


def _aimed(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What the samples by class reach, and what they were to reach where that is measured, too."""
    from diabolo.chapters.sharp_claims import CLOSER, COVERED

    flow, mixture, floor = (rows[name] for name in ("flow-class", "mixture", "floor"))
    limit = CLOSER * mixture["frechet"]["value"]
    spread = math.hypot(flow["frechet"]["se"], CLOSER * mixture["frechet"]["se"])
    return {
        **{key: f"{100 * flow[key]['value']:.1f}" for key in ("class_accuracy", "coverage", "memorised")},
        "covered": f"{100 * COVERED * floor['coverage']['value']:.1f}",
        "distance": f"{flow['frechet']['value']:.1f}",
        "limit": f"{limit:.1f}",
        "margin": f"{(limit - flow['frechet']['value']) / spread:.1f}",
    }


def _gap(bits: Iterable[float], full: float) -> dict[str, str]:
    """The fewest bits/dim of the models here, and how far the Gaussian with the full covariance is ahead of them."""
    best = min(bits)
    return {"best": f"{best:.3f}", "gap": f"{best - full:.3f}"}


def _cores(machine: Mapping[str, Any]) -> str:
    return f"{machine['processor'].replace('(R)', '')} ({machine['cores']} cores)"


def _sharp(title: str, row: Mapping[str, Any], gain: Mapping[str, Any] | None) -> str:
    """A network of the sharp chapter; `gain`: its change of PSNR against the run that it differs from by one change."""
    cells = [
        f"{row['active_units']['of']}",
        f"{row['parameters']:,}",
        f"{row['images']:,}",
        f"{row['seconds']:.0f} ({row['threads']})",
        _pm(row["kl"], 1),
        _pm(row["bits_per_dim"], 4),
        _pm(row["bits_per_dim_calibrated"], 4),
        _pm(row["psnr"], 2),
        "-" if gain is None else _pm(gain, 2),
    ]
    return f"| {title} | {' | '.join(cells)} |"


def _sharp_line(title: str, line: Mapping[str, Any]) -> str:
    bits = _pm({"value": line["bits_per_dim"], "se": line["bits_se"]}, 4)
    kl, psnr = ("-" if line[key] is None else f"{line[key]:.{digits}f}" for key, digits in (("kl", 1), ("psnr", 2)))
    return f"| {title} | {line['latent'] or '-'} | - | - | - | {kl} | {bits} | - | {psnr} | - |"


def _samples_of(title: str, row: Mapping[str, Any]) -> str:
    def percent(key: str) -> str:
        return f"{100 * row[key]['value']:.1f} {PLUS_MINUS} {100 * row[key]['se']:.1f} %" if key in row else "-"

    shares = [percent(key) for key in ("precision", "recall", "coverage", "class_accuracy", "memorised")]
    return f"| {' | '.join([title, _pm(row['frechet'], 2), *shares])} |"


def speed(content: Mapping[str, Any], language: str) -> str:
    """A table of the rows of every job that bench.json holds, with machine and versions; rows without a number are left out.

    Raises:
        ValueError: if a job was only tried with --quick.
    """
    words, rows = WORDS[language], []
    quick = [name for name, job in content["jobs"].items() if job["about"]["quick"]]
    if quick:
        raise ValueError(f"{', '.join(quick)}: numbers of a --quick run mean nothing")
    for name, job in content["jobs"].items():
        title, found = words[f"speed_{name}"].format(**job["about"]["sizes"]), job["summary"]
        beside = {one["slow"]: one["in_round"] for one in found["ratios"] if one["fast"] == "diabolo"}
        floors = {f"floor-{precision}": {"seconds": took} for precision, took in found["floor"].items()}
        rows += [
            _timed(title, words.get(f"speed_row_{key}", key), row, beside.get(key))
            for key, row in {**floors, **found["rows"]}.items()
            if row["seconds"]
        ]
    counted = [job["summary"]["rounds"] for job in content["jobs"].values()]
    told = {
        "machine": _machines([job["about"] for job in content["jobs"].values()], words),
        "kept": sum(rounds["kept"] for rounds in counted),
        "dropped": sum(rounds["dropped"] for rounds in counted),
    }
    return "\n\n".join([_table(words["speed_columns"], rows), words["speed"].strip().format(**told)])


def _timed(job: str, title: str, row: Mapping[str, Any], beside: Mapping[str, float] | None) -> str:
    cells = [
        job,
        title,
        _between(row["seconds"]),
        "-" if beside is None else _between(beside),
        f"{100 * row['share']['median']:.0f} %" if row.get("share") else "-",
        f"{row['memory'] / 1e6:.0f} MB" if row.get("memory") else "-",
    ]
    return f"| {' | '.join(cells)} |"


def _between(spread: Mapping[str, float]) -> str:
    """Median (least to largest), to three digits or so."""
    digits = next((count for count, least in ((1, 10), (2, 1), (3, 0.1)) if spread["median"] >= least), 4)
    middle, least, largest = (f"{spread[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{middle} ({least} \N{EN DASH} {largest})"


def _machines(abouts: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> str:
    """Each machine once, with the commits that were measured on it."""
    commits: dict[str, list[str]] = {}
    for about in abouts:
        commits.setdefault(_machine({**about, "commit": "{commit}"}, words), []).append(about["commit"])
    return "; ".join(text.format(commit=", ".join(dict.fromkeys(found))) for text, found in commits.items())


def _machine(about: Mapping[str, Any], words: Mapping[str, str]) -> str:
    names = ("processor", "cores", "memory", "torch", "numpy", "python")
    shown = {name: about["machine"][name] for name in names}
    facts = {name: about[name] for name in ("threads", "commit", "pythae")}
    return words["speed_machine"].format(**shown, **facts, date=about["date"][:10])


def _network(title: str, evaluation: Mapping[str, Any], directions: int, words: Mapping[str, str]) -> str:
    active = evaluation["active_units"]
    cells = [
        words["of"].format(value=active["value"], of=active["of"]),
        str(directions),
        _pm(evaluation["kl"], 1),
        _pm(evaluation["bits_per_dim"], 4),
        _pm(evaluation["bits_per_dim_calibrated"], 4),
        _pm(evaluation["psnr"], 2),
        _pm(evaluation["ssim"], 3),
    ]
    return f"| {title} | {' | '.join(cells)} |"


def _line(title: str, line: Mapping[str, Any]) -> str:
    active = "-" if line["active"] is None else str(line["active"])
    kl = "-" if line["kl"] is None else f"{line['kl']:.1f}"
    psnr = "-" if line["psnr"] is None else f"{line['psnr']:.2f}"
    bits = _pm({"value": line["bits_per_dim"], "se": line["bits_se"]}, 4)
    return f"| {title} | {active} | {active} | {kl} | {bits} | - | {psnr} | - |"


def _caption(evaluation: Mapping[str, Any], words: Mapping[str, str]) -> str:
    about, log_p = evaluation["about"], evaluation["log_p"]
    unit = evaluation["elbo"]["unit"]
    text = words["caption"].format(
        data=about["data"].upper(), split=about["split"], n=about["n"], values=about["values"], likelihood=about["likelihood"],
        label="" if about["normalised"] else words["unnormalised"], unit=unit,
        samples=about["elbo_samples"], k=log_p["k"], images=log_p["n"], seed=about["seed"],
    ).strip()  # fmt: skip
    if about["entropy_floor"] is None or about["normalised"]:
        return text
    return f"{text} {words['floor'].format(floor=about['entropy_floor'], unit=unit)}"


def _measured(model: str, evaluation: Mapping[str, Any], words: Mapping[str, str]) -> str:
    log_p, active = evaluation["log_p"], evaluation["active_units"]
    cells = [
        _pm(evaluation["elbo"], 2),
        _pm(log_p, 2),
        _pm({"value": log_p["gap"], "se": log_p["gap_se"]}, 2),
        _pm(evaluation["kl"], 2),
        _pm(evaluation["mse_mean"], 4),
        _pm(evaluation["mse_sample"], 4),
        words["of"].format(value=active["value"], of=active["of"]),
    ]
    return f"| {model} | {' | '.join(cells)} |"


def _published(label: str, values: Mapping[str, float]) -> str:
    """The article's values with the digits that it prints."""
    digits = (("elbo", 3), ("log_p", 3), ("gap", 3), ("kl", 3), ("mse_mean", 4))
    cells = [_signed(f"{values[name]:.{count}f}") if name in values else "-" for name, count in digits]
    return f"| {label} | {' | '.join(cells)} | - | - |"


def _pm(entry: Mapping[str, Any], digits: int) -> str:
    return f"{_signed(format(entry['value'], f'.{digits}f'))} {PLUS_MINUS} {entry['se']:.{digits}f}"


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _table(header: str, rows: Sequence[str]) -> str:
    columns = header.count("|") - 1
    return "\n".join([header, "|" + "---|" * columns, *rows])


def read_evaluations(chapter: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """evaluation.json of all six runs; empty unless all are there."""
    found = {}
    for model in MODELS:
        for convention in ("grey", "binarized"):
            path = chapter / f"{model.lower().replace(' ', '')}-{convention}" / "evaluation.json"
            if not path.is_file():
                return {}
            found[model, convention] = json.loads(path.read_text(encoding="utf-8"))
    return found


def replace_block(text: str, name: str, content: str) -> str:
    """`text` with what stands between the markers `name:begin` and `name:end` replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the markers {begin} and {end} are missing")
    return f"{head}{begin}\n{content}\n{end}{tail}"


def rewritten(text: str, language: str, chapter: Path) -> str:
    """A README with its generated parts written anew; the results stay as they are where the chapter is not finished."""
    blocks: dict[str, Callable[[], str]] = {"presets": lambda: preset_table(language)}
    evaluations = read_evaluations(chapter)
    if evaluations:
        from diabolo.chapters.mnist_article import PUBLISHED

        blocks["results"] = lambda: results(evaluations, PUBLISHED, language)
    if MEASURES.is_file():
        measures = json.loads(MEASURES.read_text(encoding="utf-8"))
        blocks["autoencoders"] = lambda: autoencoders(measures, language)
    if (CIFAR10 / "measures-locality.json").is_file():
        blocks["cifar10"] = lambda: cifar10(CIFAR10, language)
    if (SHARP / "measures.json").is_file():
        blocks["sharp"] = lambda: sharp(SHARP, language)
    if SPEED.is_file():
        timings = json.loads(SPEED.read_text(encoding="utf-8"))
        blocks["speed"] = lambda: speed(timings, language)
    for name, content in blocks.items():
        text = replace_block(text, name, content())
    return text


def main(arguments: Sequence[str]) -> int:
    """Rewrite or check both READMEs."""
    changed = []
    for language, path in READMES.items():
        before = path.read_text(encoding="utf-8")
        after = rewritten(before, language, CHAPTER)
        if after != before:
            changed.append(path.name)
            if "--check" not in arguments:
                path.write_text(after, encoding="utf-8")
    print(f"{'differ' if '--check' in arguments else 'written'}: {', '.join(changed) or 'none'}")
    return 1 if changed and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
