"""Configuration: presets, overrides, what is refused and how it is said."""

from __future__ import annotations

import json
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diabolo import config as config_module
from diabolo import registry
from diabolo.config import (
    COMPONENTS,
    RunConfig,
    convert,
    from_dict,
    preset_names,
    read_json,
    read_preset,
    resolve,
)
from diabolo.errors import DataError, UsageError, did_you_mean
from diabolo.registry import Parameter

IWAE = {"name": "iwae", "samples": 8, "gradient": "total"}
PINNED = Path(__file__).parent / "presets_resolved.json"
#: Values of the wrong type, by annotation, as text from the command line.
WRONG_TYPE = {
    "int": ["half", "1.5", "", "true", "1e3", "9" * 5000],
    "float": ["half", "", "true", "nan", "inf", "1e999"],
    "bool": ["1", "yes", ""],
    "float | None": ["half", "", "nan"],
}
#: Values of the right type that no run can be made with.
OUT_OF_RANGE = {
    "model.latent": ["0", "-1"],
    "model.encoder.width": ["0"],
    "model.decoder.width": ["-3"],
    "model.encoder.depth": ["-1"],
    "model.decoder.depth": ["-1"],
    "objective.beta": ["-0.1"],
    "objective.warmup_steps": ["-1"],
    "train.epochs": ["0"],
    "train.batch": ["0"],
    "train.lr": ["0", "-1"],
    "train.clip": ["0"],
    "train.ema": ["-0.1", "1", "2"],
    "train.warmup": ["-0.1", "1"],
    "train.log_every": ["0"],
    "train.checkpoint_every": ["-1"],
    "seed": ["-1"],
    "data.validation": ["-1"],
    "model.likelihood.scale": ["0", "-2"],
}


def flat(config: RunConfig) -> dict[str, Any]:
    """Every dotted path of a resolved configuration and its value; a component's name stands under its own path."""
    found: dict[str, Any] = {}

    def walk(tree: dict[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                found[(prefix + key).removesuffix(".name")] = value

    walk({k: v for k, v in config.to_dict().items() if k not in {"schema", "preset"}}, "")
    return found


def parameter_of(path: str) -> Parameter:
    """The declared parameter behind a path of the preset `vae`."""
    tree = resolve("vae").config.to_dict()
    for component, slot in COMPONENTS.items():
        if path.startswith(component + "."):
            name: Any = tree
            for word in component.split("."):
                name = name[word]
            return registry.settable(slot, name["name"])[path.removeprefix(component + ".")]
    if path.startswith("train."):
        field = config_module.TrainConfig.__dataclass_fields__[path.removeprefix("train.")]
        return Parameter(field.name, str(field.type), field.default)
    return Parameter(path, "int", None)


KEYS = sorted(flat(resolve("vae").config))
SETTINGS = [key for key in KEYS if key not in COMPONENTS]


# ------------------------------------------------------------------------------------------------ resolving
def test_overrides_win_over_the_preset_and_the_preset_over_defaults():
    plain = resolve("vae")
    assert (plain.config.data.name, plain.origins["data.name"]) == ("digits", "preset vae")
    assert (plain.config.train.clip, plain.origins["train.clip"]) == (None, "default")
    changed = resolve("vae", ["train.epochs=32", "train.clip=0.5", "train.epochs=16"])
    assert (changed.config.train.epochs, changed.origins["train.epochs"]) == (16, "override")
    assert (changed.config.train.clip, changed.origins["train.clip"]) == (0.5, "override")
    assert changed.origins["data.name"] == "preset vae"


@pytest.mark.parametrize("preset", preset_names())
def test_every_value_has_an_origin(preset):
    resolved = resolve(preset)
    assert {path.removesuffix(".name") for path in resolved.origins} == set(flat(resolved.config))
    assert set(resolved.origins.values()) <= {"default", f"preset {preset}"}


def test_a_component_s_name_can_come_after_its_parameters():
    for overrides in (
        ["objective=iwae", "objective.samples=3"],
        ["objective.samples=3", "objective=iwae"],
        ["objective.samples=3", "objective.name=iwae"],
    ):
        found = resolve("vae", overrides).config.objective
        assert (found.name, found.params["samples"], found.params["gradient"]) == ("iwae", 3, "total")


def test_another_component_drops_the_parameters_of_the_one_it_replaces():
    assert resolve("mnist", ["objective=iwae"]).config.objective.to_dict() == IWAE
    assert resolve("mnist", ["objective=elbo", "objective.warmup_steps=3"]).config.objective.params["beta"] == 1.0
    assert dict(resolve("mnist", ["data=digits"]).config.data.params) == {"binarize": False, "validation": 200}


def test_a_saved_configuration_takes_another_component_too():
    saved = resolve("mnist").config.to_dict()
    assert from_dict(saved, ["objective=iwae"]).config.objective.to_dict() == IWAE
    swapped = from_dict(saved, ["objective.samples=2", "objective=iwae", "data=digits"]).config
    assert (swapped.objective.params["samples"], swapped.data.name) == (2, "digits")


@pytest.mark.parametrize("preset", preset_names())
def test_json_round_trip(preset):
    config = resolve(preset, ["seed=7", "train.clip=2.5"]).config
    saved = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    again = from_dict(saved).config
    assert again == config
    assert again.to_dict() == config.to_dict()
    assert from_dict(saved, ["train.clip=none"]).config.train.clip is None


def test_a_resolved_configuration_cannot_be_changed():
    config = resolve("vae").config
    with pytest.raises(AttributeError):
        config.seed = 3
    with pytest.raises(TypeError):
        config.objective.params["beta"] = 3.0


def test_presets_are_what_they_were_pinned_to():
    """A default that changes shows here, so that a silent default cannot shift results. To accept a change on purpose,
    write {name: resolve(name).config.to_dict()} of all presets into tests/presets_resolved.json."""
    pinned = json.loads(PINNED.read_text(encoding="utf-8"))
    found = {name: json.loads(json.dumps(resolve(name).config.to_dict())) for name in preset_names()}
    assert found == pinned


def test_the_article_s_presets_are_the_article_s():
    for name, likelihood, binarize in (("mnist-grey", "bernoulli_relaxed", False), ("mnist", "bernoulli", True)):
        config = resolve(name).config
        assert config.data.to_dict() == {"name": "mnist", "binarize": binarize, "validation": 0}
        assert (config.model.latent, config.model.likelihood.name) == (20, likelihood)
        for network in (config.model.encoder, config.model.decoder):
            assert (network.params["width"], network.params["depth"], network.params["activation"]) == (400, 2, "relu")
        train = config.train
        assert (train.epochs, train.batch, train.lr, train.ema) == (10, 128, 0.001, 0.0)
        assert (train.keep, train.curve) == ("last", "test")
        assert config.seed == 0


# ------------------------------------------------------------------------------------------------ refusing
@pytest.mark.parametrize("key", KEYS)
def test_an_unknown_key_is_refused_with_its_path_and_a_suggestion(key):
    wrong = key[:-1] + ("x" if key[-1] != "x" else "y")
    with pytest.raises(UsageError) as caught:
        resolve("vae", [f"{wrong}=1"])
    assert f"'{wrong}'" in str(caught.value)
    assert f'Did you mean "{key}"?' in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("key", SETTINGS)
def test_a_value_of_the_wrong_type_is_refused_with_its_path(key):
    annotation = parameter_of(key).type
    wrong = ["nonsense", ""] if annotation.startswith("Literal") else WRONG_TYPE[annotation]
    for value in wrong:
        with pytest.raises(UsageError, match="must be") as caught:
            resolve("vae", [f"{key}={value}"])
        assert str(caught.value).startswith(f"{key}={value}")


@pytest.mark.parametrize("key", [key for key in SETTINGS if parameter_of(key).type in {"int", "float", "float | None"}])
def test_a_value_out_of_range_is_refused_with_its_path(key):
    if key.endswith(".slope"):  # any finite slope makes a function
        assert resolve("vae", [f"{key}=-0.5"])
        return
    for value in OUT_OF_RANGE[key]:
        with pytest.raises(UsageError) as caught:
            resolve("vae", [f"{key}={value}"])
        assert str(caught.value).startswith(f"{key}=")


@pytest.mark.parametrize("component", COMPONENTS)
def test_an_unknown_component_is_refused_with_its_path_and_the_accepted_names(component):
    with pytest.raises(UsageError) as caught:
        resolve("vae", [f"{component}=nonsense"])
    text = str(caught.value)
    assert text.startswith(f"{component}: ") and "'nonsense'" in text
    assert all(name in text for name in registry.names(COMPONENTS[component]))


def one_letter_typos(word: str) -> list[str]:
    """Deletions, swaps of neighbours, replacements and doublings, at every position."""
    cuts = range(len(word))
    deleted = [word[:i] + word[i + 1 :] for i in cuts]
    swapped = [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in cuts if i + 1 < len(word)]
    replaced = [word[:i] + letter + word[i + 1 :] for i in cuts for letter in "xq"]
    doubled = [word[:i] + word[i] + word[i:] for i in cuts]
    return [typo for typo in {*deleted, *swapped, *replaced, *doubled} if typo and typo != word]


def suggested(error: UsageError) -> str:
    return str(error).partition('Did you mean "')[2].partition('"')[0]


def test_at_least_95_percent_of_one_letter_typos_get_the_right_suggestion():
    """Typos in the last word of each key, in preset names and in the names of components."""
    outcomes = []
    for key in KEYS:
        parent, _, last = key.rpartition(".")
        for typo in one_letter_typos(last):
            wrong = f"{parent}.{typo}" if parent else typo
            if wrong in KEYS:
                continue
            with pytest.raises(UsageError) as caught:
                resolve("vae", [f"{wrong}=1"])
            outcomes.append(suggested(caught.value) == key)
    for name in preset_names():
        for typo in set(one_letter_typos(name)) - set(preset_names()):  # dae without its d is ae
            with pytest.raises(UsageError) as caught:
                resolve(typo)
            outcomes.append(suggested(caught.value) == name)
    for component, slot in COMPONENTS.items():
        for name in registry.names(slot):
            for typo in one_letter_typos(name):
                with pytest.raises(UsageError) as caught:
                    resolve("vae", [f"{component}={typo}"])
                outcomes.append(suggested(caught.value) == name)
    assert len(outcomes) > 1000
    assert sum(outcomes) / len(outcomes) >= 0.95


def test_nothing_near_means_no_suggestion_but_the_accepted_words():
    assert did_you_mean("zzz", ["alpha", "beta"]) == "Accepted: alpha, beta."
    assert did_you_mean("alpa", ["alpha", "beta"]) == 'Did you mean "alpha"? Accepted: alpha, beta.'


@pytest.mark.parametrize("name", sorted(set(registry.names("dataset")) - set(preset_names())))
def test_the_name_of_a_data_set_is_answered_with_the_command(name):
    with pytest.raises(UsageError, match=f"diabolo train vae data={name}"):
        read_preset(name)


@pytest.mark.parametrize("text", ["train.epochs", "=3", "", "train.epochs:3"])
def test_an_override_without_a_sign_is_refused(text):
    with pytest.raises(UsageError, match="no override"):
        resolve("vae", [text])


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"train": {"epochs": "5"}}, "train.epochs"),
        ({"train": {"epochs": 5.5}}, "train.epochs"),
        ({"seed": True}, "seed"),
        ({"train": {"lr": "fast"}}, "train.lr"),
        ({"train": {"nope": 1}}, "train.nope"),
        ({"data": {"name": "digits", "binarize": 1}}, "data.binarize"),
        ({"train": {"lr": float("nan")}}, "train.lr"),
        ({"train": {"lr": 10**400}}, "train.lr"),
        ({"model": 3}, "model"),
        ({"objective": {"name": "nope"}}, "objective"),
        ({"objective": {"name": 3}}, "objective"),
        ({"train": {"keep": "worst"}}, "train.keep"),
        ({"train": {"epochs": None}}, "train.epochs"),
        ({"train": {"epochs": [1]}}, "train.epochs"),
    ],
)
def test_a_saved_configuration_with_a_wrong_value_is_refused(change, path):
    saved = {**resolve("vae").config.to_dict(), **change}
    with pytest.raises(UsageError) as caught:
        from_dict(saved)
    assert path in str(caught.value).splitlines()[0]


def test_a_missing_part_is_named():
    saved = resolve("vae").config.to_dict()
    del saved["model"]["latent"]
    with pytest.raises(UsageError, match=r"model\.latent is missing"):
        from_dict(saved)


def test_a_newer_schema_is_refused():
    with pytest.raises(DataError, match="newer"):
        from_dict({**resolve("vae").config.to_dict(), "schema": 99})


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff\xfe{}", b'{"a": ' * 50])
def test_a_file_that_is_no_json_object_is_a_data_error(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"config\.json"):
        read_json(path)
    with pytest.raises(DataError, match="does not exist"):
        read_json(tmp_path / "none.json")


@given(st.text(alphabet=string.printable, max_size=30), st.sampled_from([*SETTINGS, *COMPONENTS]))
def test_no_text_is_anything_but_accepted_or_a_usage_error(text, key):
    try:
        config = resolve("vae", [f"{key}={text}"]).config
    except UsageError:
        return
    assert from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))).config == config


@pytest.mark.parametrize("key", ["seed", "train.epochs", "train.lr", "train.clip"])
def test_a_number_of_400_digits_is_accepted_or_refused_but_no_crash(key):
    try:
        assert flat(resolve("vae", [f"{key}={'9' * 400}"]).config)[key] == 10**400 - 1
    except UsageError as error:
        assert str(error).startswith(f"{key}=")


def test_whole_numbers_serve_as_floats_and_not_the_other_way():
    assert convert(3, "float", "a") == 3.0 and isinstance(convert(3, "float", "a"), float)
    for value, annotation in ((3.0, "int"), (True, "int"), (True, "float"), (1, "bool"), ("3", "int"), (3, "str")):
        with pytest.raises(UsageError):
            convert(value, annotation, "a")


def test_a_latent_is_a_number_or_the_shape_of_a_grid():
    for text, latent in (("20", 20), ("8,4,2", (8, 4, 2)), ("(8, 4, 2)", (8, 4, 2)), ("[8,4,2]", (8, 4, 2))):
        config = resolve("vae", [f"model.latent={text}"]).config
        assert config.model.latent == latent
        assert from_dict(json.loads(json.dumps(config.to_dict()))).config == config
    assert resolve("cifar10-sharp").config.model.latent == (8, 8, 8)  # a list in TOML


@pytest.mark.parametrize(
    ("given", "shown", "why"),
    [
        ("0", "0", "It must be at least 1."),
        ("8,8", "8,8", "channels, height and width"),
        ("2,2,2,2", "2,2,2,2", "channels, height and width"),
        ("8,0,8", "8,0,8", "Each must be at least 1."),
        ("8,-1,8", "8,-1,8", "Each must be at least 1."),
        ("8,a,8", "8,a,8", "a whole number or whole numbers with commas"),
        ("8x8x8", "8x8x8", "a whole number or whole numbers with commas"),
    ],
)
def test_a_latent_that_is_neither_is_refused(given, shown, why):
    with pytest.raises(UsageError) as caught:
        resolve("vae", [f"model.latent={given}"])
    assert str(caught.value).startswith(f"model.latent={shown} is refused") and why in str(caught.value)


def test_lists_of_whole_numbers():
    text = config_module._Text
    assert convert([1, 2], "tuple[int, ...]", "a") == convert(text("1,2"), "tuple[int, ...]", "a") == (1, 2)
    assert convert(text("[3]"), "tuple[int, ...]", "a") == (3,)
    for wrong in (text("1,x"), [1.5], 3):
        with pytest.raises(UsageError):
            convert(wrong, "tuple[int, ...]", "a")


# ------------------------------------------------------------------------------------------------ the registry
REGISTERED = [(slot, name) for slot in registry.SLOTS for name in registry.names(slot)]


@pytest.mark.parametrize(("slot", "name"), REGISTERED, ids=map("-".join, REGISTERED))
def test_signatures_read_from_source_are_those_of_the_running_code(slot, name):
    from_source = registry.read_signature(registry._sources()[slot][name].definition)
    assert list(from_source.items()) == list(registry._inspected(registry.get(slot, name)).items())


@pytest.mark.parametrize(("slot", "name"), REGISTERED, ids=map("-".join, REGISTERED))
def test_every_component_has_a_summary_and_settable_parameters_of_known_types(slot, name):
    assert registry.summary(slot, name)
    if slot == "metric":
        return
    for key, parameter in registry.settable(slot, name).items():
        assert key not in registry.INJECTED
        if not parameter.required and parameter.default is not None:
            assert convert(parameter.default, parameter.type, key) == parameter.default


def test_registering_refuses_a_taken_name_and_an_unknown_slot():
    with pytest.raises(ValueError, match="unknown slot"):
        registry.register("nope", "a")
    registry.get("likelihood", "gaussian")
    with pytest.raises(ValueError, match="already registered"):
        registry.register("likelihood", "gaussian")(lambda: None)


def test_a_component_of_ones_own_is_configured_like_a_built_in_one():
    @registry.register("objective", "of_my_own")
    class OfMyOwn:
        """My own bound."""

        def __init__(self, strength: float = 2.0) -> None:
            self.strength = strength

    try:
        found = resolve("vae", ["objective=of_my_own", "objective.strength=3"]).config.objective
        assert found.to_dict() == {"name": "of_my_own", "strength": 3.0}
        assert registry.summary("objective", "of_my_own") == "My own bound."
        with pytest.raises(UsageError, match=r"objective\.strenth"):
            resolve("vae", ["objective=of_my_own", "objective.strenth=3"])
    finally:
        del registry._CATALOGUE["objective"]["of_my_own"]


WITHOUT_TORCH = """
import sys
import diabolo
from diabolo.config import resolve
from diabolo.errors import UsageError
for preset in diabolo.presets():
    resolve(preset, ["seed=3"])
for wrong in ("train.epoch=3", "objective=elbow", "objective.beta=x", "model.latent=0"):
    try:
        resolve("vae", [wrong])
    except UsageError:
        continue
    raise SystemExit(f"{wrong} was accepted")
heavy = sorted({"torch", "numpy", "matplotlib", "sklearn", "torchvision"} & set(sys.modules))
raise SystemExit(f"imported: {heavy}" if heavy else 0)
"""


def test_configuring_and_refusing_import_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_key_without_its_section_gets_the_whole_key_as_a_suggestion():
    for word, key in (("lr", "train.lr"), ("beta", "objective.beta"), ("latent", "model.latent")):
        with pytest.raises(UsageError, match=f'Did you mean "{key}"'):
            resolve("vae", [f"{word}=1"])
