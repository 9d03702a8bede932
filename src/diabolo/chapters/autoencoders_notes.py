"""The words of the chapter of autoencoders: pure functions of measured numbers, each written so that it says the opposite where
the numbers do. Each is said by its template, so that a report in another language can say it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diabolo.denoising import AS_IT_IS
from diabolo.language import joined, say
from diabolo.report import Note
from diabolo.tables import number, signed

Found = Mapping[str, Any]

REFERENCES = (
    "Hinton and Salakhutdinov: Reducing the dimensionality of data with neural networks. Science 2006. "
    "doi:10.1126/science.1127647",
    "Baldi and Hornik: Neural networks and principal component analysis. Neural Networks 1989. "
    "doi:10.1016/0893-6080(89)90014-2",
    "Vincent, Larochelle, Lajoie, Bengio and Manzagol: Stacked denoising autoencoders. JMLR 2010. "
    "jmlr.org/papers/v11/vincent10a.html",
    "Rifai, Vincent, Muller, Glorot and Bengio: Contractive auto-encoders. ICML 2011. icml.cc/2011/papers/455_icmlpaper.pdf",
    "Hutchinson: A stochastic estimator of the trace of the influence matrix. Communications in Statistics 1989. "
    "doi:10.1080/03610918908812806",
    "Wang, Bovik, Sheikh and Simoncelli: Image quality assessment: from error visibility to structural similarity. "
    "IEEE TIP 2004. doi:10.1109/TIP.2003.819861",
    "Kingma and Welling: Auto-Encoding Variational Bayes. ICLR 2014. arXiv:1312.6114",
)

KINDS = {
    "gaussian": say("Gaussian noise; level: standard deviation"),
    "masking": say("masking; level: share of pixels set to 0"),
    "salt_pepper": say("salt and pepper; level: share of pixels set to 0 or 1"),
}
METHODS = {
    AS_IT_IS: say("noisy image as it is, clipped"),
    "Gaussian filter": say("Gaussian filter"),
    "median filter": say("median filter"),
    "autoencoder": say("autoencoder, d = 20, never saw noise"),
    "denoising": say("denoising autoencoder, d = 20, trained on Gaussian noise of 0.3"),
    "VAE": say("VAE, d = 20, at the posterior mean"),
}


LAYERS = {
    "plain": say("plain"),
    "denoising, Gaussian": say("denoising, Gaussian"),
    "denoising, masking": say("denoising, masking"),
    "denoising, salt and pepper": say("denoising, salt and pepper"),
    "contractive": say("contractive"),
    AS_IT_IS: say("nothing: the noisy image as it is"),
}
NOISES = {
    "Gaussian, sd 0.3": say("Gaussian, sd 0.3"),
    "masking, 25 %": say("masking, 25 %"),
    "salt and pepper, 20 %": say("salt and pepper, 20 %"),
}


def _row(found: Found, d: int) -> Mapping[str, Any]:
    return next(row for row in found["bottleneck"] if row["d"] == d)


def _mean(entry: Mapping[str, Any], digits: int) -> str:
    return f"{number(entry['value'], digits)} \u00b1 {number(entry['se'], digits)}"


# ------------------------------------------------------------------------------------------------ summary and reading
def summary(found: Found) -> list[tuple[str, str, str]]:
    """The chapter in four lines: a label, its number, a remark."""
    ae, layers = _row(found, 20), found["layers"]
    share = 1 - ae["ae"]["value"] / ae["pca"]["value"]
    distance = found["drawing"]["distance"]
    gaussian = found["denoising"]["gaussian"]
    at = gaussian["levels"].index(0.3)
    restored, noisy = (gaussian["rows"][name][at]["psnr"] for name in ("denoising", AS_IT_IS))
    frobenius = {name: row["spectrum"]["frobenius"] for name, row in layers.items()}
    return [
        (
            say("Squared error, 20 dimensions"),
            _mean(ae["ae"], 4),
            say(
                "per pixel; PCA with as many: {pca}, {share} % {verdict}",
                pca=_mean(ae["pca"], 4),
                share=number(abs(100 * share / (1 - share)), 0),
                verdict=say("more") if share > 0 else say("less"),
            ),
        ),
        (
            say("Decoded N(0, I), distance to a real image"),
            _mean(distance["ae-standard"], 4),
            say(
                "squared error per pixel to the nearest; VAE {vae}, real images {real}",
                vae=_mean(distance["vae-prior"], 4),
                real=_mean(distance["test images"], 4),
            ),
        ),
        (
            say("Denoised at its own level, Gaussian 0.3"),
            f"{number(restored)} dB",
            say("{gain} dB against the noisy image", gain=signed(restored - noisy)),
        ),
        (
            say("Sensitivity of the code, ||J||"),
            number(frobenius["contractive"], 2),
            say("contractive; without the penalty {plain}", plain=number(frobenius["plain"], 2)),
        ),
    ]


def reading(found: Found) -> list[str]:
    """Which numbers may be compared with which, one line each."""
    n = f"{found['matrix']['masking, 25 %'][AS_IT_IS]['n']:,}"
    return [
        say(
            "Squared errors, PSNR and SSIM: between all methods of one table, which are measured on the same images and the "
            "same noise."
        ),
        say(
            "Losses of these runs: only with one another. They are binary cross-entropies of grey levels, which is no "
            "likelihood; an autoencoder has no log p(x) at all, so nothing here ranks it against a VAE but errors."
        ),
        say("Bottleneck: all test images. Denoising and compression: the first {n} of them.", n=n),
        say(
            "Errors are one standard error over images: another training run would differ by more. Each model was trained "
            "once, with seed 0."
        ),
        say(
            "Bits per pixel count the stream that was written and read back, not the decoder's weights nor the codec's tables; "
            "JPEG and PNG need neither, so the comparison flatters the models."
        ),
    ]


def spread(found: Mapping[str, Any]) -> str:
    """What the codes are like, against N(0, I)."""
    s = found["spread"]
    return say(
        "The codes' standard deviations lie between {least} and {largest} (d = 20, {n} training images), and their "
        "lengths are {norm} in the mean, where those of N(0, I) are about {standard}.",
        least=number(s["least"]),
        largest=number(s["largest"]),
        n=f"{s['n']:,}",
        norm=_mean(found["norm"], 2),
        standard=number(found["norm_standard"]),
    )


# ------------------------------------------------------------------------------------------------ notes
def notes(found: Found) -> list[Note]:
    """The claims of the article, and of common belief, that this chapter can test."""
    return [
        _functions(found),
        _generative(found),
        _linear(found),
        _invariant(found),
        _lossy(found),
        _small_noise(found),
    ]


def _functions(found: Found) -> Note:
    robust = found["layers"]["contractive"]["robustness"]
    return Note(
        6,
        say("The codes of denoising and contractive autoencoders are fixed parameters."),
        say(
            "Noise of {level} moves the contractive code by {spread} of its spread (n = {n}): it follows its input.",
            level=f"{robust['level']:g}",
            spread=number(robust["spread"], 4),
            n=f"{robust['n']:,}",
        ),
        say(
            "They are deterministic functions of the input; only the weights are fixed after training. What they lack is a "
            "density on the code, hence a principled way to sample."
        ),
    )


def _generative(found: Found) -> Note:
    d = found["drawing"]["distance"]
    standard, fitted, vae = (d[name]["value"] for name in ("ae-standard", "ae-fitted", "vae-prior"))
    verdict = (
        say("Both are further from real images than the VAE's.")
        if min(standard, fitted) > vae
        else say(
            "Nearness alone does not rank them here: a blurred average is near to many images. Look at the pictures."
        )
    )
    return Note(
        1,
        say("An autoencoder's decoder could be used to generate."),
        say(
            "Distance of a decoded z to the nearest of {known} training images: z ~ N(0, I) {standard}, z ~ fitted Gaussian "
            "{fitted}, the VAE's prior {vae}. {verdict}",
            known=f"{found['drawing']['known']:,}",
            standard=_mean(d["ae-standard"], 4),
            fitted=_mean(d["ae-fitted"], 4),
            vae=_mean(d["vae-prior"], 4),
            verdict=verdict,
        ),
        say(
            "Nothing in its loss says where codes lie, so any z may fall where the decoder was never trained. A fitted Gaussian "
            "knows mean and covariance of the codes, not their shape. A VAE's KL term pulls the codes to the prior."
        ),
    )


def _linear(found: Found) -> Note:
    rows = [(row["d"], row["difference"]["value"], row["difference"]["se"]) for row in found["bottleneck"]]
    better = [str(d) for d, value, se in rows if value < -2 * se]
    measured = joined(
        "{before}; {after}",
        [say("d = {d}: {value} \u00b1 {se}", d=d, value=signed(value, 5), se=number(se, 5)) for d, value, se in rows],
    )
    return Note(
        2,
        say("A bottleneck compresses like PCA, only better."),
        say(
            "Squared error per pixel, autoencoder minus PCA: {measured}. Better at d = {better}.",
            measured=measured,
            better=joined("{before}, {after}", better or [say("no size")]),
        ),
        say(
            "A linear autoencoder cannot beat PCA (Baldi and Hornik); the gain is that of the nonlinear layers. Tested: "
            "tests/test_family.py::test_a_linear_autoencoder_reaches_the_subspace_of_pca."
        ),
    )


def _invariant(found: Found) -> Note:
    rows = found["layers"]
    order = sorted(rows, key=lambda name: rows[name]["spectrum"]["frobenius"])
    told = joined(
        "{before}; {after}",
        [
            say("{name}: {norm}", name=LAYERS[name], norm=number(rows[name]["spectrum"]["frobenius"], 2))
            for name in order
        ],
    )
    probe = max(rows, key=lambda name: rows[name]["probe"]["value"])
    return Note(
        3,
        say("A contractive code is insensitive to its input, and therefore better."),
        say(
            "||J|| in the mean: {told}. The best linear probe is that of: {probe} ({accuracy}).",
            told=told,
            probe=LAYERS[probe],
            accuracy=_mean(rows[probe]["probe"], 4),
        ),
        say(
            "The penalty makes every direction shorter; the reconstruction keeps those along which the data vary. That a small "
            "Jacobian makes codes more useful has to be measured, as here."
        ),
    )


def _lossy(found: Found) -> Note:
    points = [p for p in found["compression"] if p["psnr"] is not None]
    best = max((p for p in points if p["method"].startswith("autoencoder")), key=lambda p: p["psnr"])
    rivals = [p for p in points if p["method"] == "JPEG without headers" and p["psnr"] >= best["psnr"]]
    told = min(rivals, key=lambda p: p["bits_per_pixel"]) if rivals else None
    rival = (
        say("JPEG reaches no such PSNR here.")
        if told is None
        else say(
            "JPEG without its headers needs {bits} bits per pixel for {psnr} dB.",
            bits=number(told["bits_per_pixel"], 3),
            psnr=number(told["psnr"]),
        )
    )
    return Note(
        4,
        say("Data compression is an application of autoencoders."),
        say(
            "The best autoencoder point: {psnr} dB at {bits} bits per pixel ({method}, {setting}). {rival}",
            psnr=number(best["psnr"]),
            bits=number(best["bits_per_pixel"], 3),
            method=best["method"],
            setting=best["setting"],
            rival=rival,
        ),
        say(
            "At few bits a code that knows digits wins; more bits help it little, because the bottleneck and not the quantiser "
            "is what loses. It knows only what it was trained on, and its decoder's weights are not counted."
        ),
    )


def _small_noise(found: Found) -> Note:
    gaussian = found["denoising"]["gaussian"]["better_than_nothing"]
    told = joined(
        "{before}; {after}",
        [
            say("{method}: {where}", method=METHODS[name], where=gaussian[name]["words"])
            for name in ("autoencoder", "denoising", "VAE")
        ],
    )
    return Note(
        5,
        say("Denoising is an application of autoencoders."),
        say("Better than the noisy image as it is, by Gaussian noise level: {told}.", told=told),
        say(
            "With small noise a bottleneck loses more than the noise costs: doing nothing is better. The lines cross where the "
            "noise has become the larger loss."
        ),
    )


def toy_rows(found: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What, its kind, the mean distance of its points to the curve, and of the curve to them."""
    rows = [(say("the noisy points"), say("data"), found["data"])]
    for word, kind in ((say("reconstructions"), "reconstructed"), (say("samples of the prior"), "sampled")):
        rows += [(model, word, entry) for model, entry in found[kind].items()]
    return [
        (title, kind, f"{number(e['to_curve'], 4)} \u00b1 {number(e['se'], 4)}", number(e["from_curve"], 4))
        for title, kind, e in rows
    ]
