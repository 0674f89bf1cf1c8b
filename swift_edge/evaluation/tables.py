"""The figures of a test as Markdown: one table of rules by number of candidates, and what belongs beside it.

Reads the plain data that `evaluate` makes, and nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from swift_edge.evaluation.selectors import BASELINES

Figure = Mapping[str, Any]

_PARTS = (("prefill", "prefill"), ("decode", "decode"), ("sampling", "sample"), ("scoring", "head"))


def markdown(results: Mapping[str, Any]) -> str:
    """Write everything as one Markdown document."""
    parts = [
        f"# {results['run']['bundle']['base_model']} ({results['run']['bundle']['precision']}) on "
        f"{results['run']['data']['name']}",
        _introduction(results),
        _accuracies(results),
        *_differences(results),
        _ranking(results),
        *_calibration(results),
        *_families(results),
        _cost(results),
        *_economy(results),
        *_ablations(results),
        *(f"Note: {note}" for note in results["notes"]),
        *(f"{name}, {verdict['text']}" for name, verdict in results.get("verdict", {}).items()),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(results: Mapping[str, Any]) -> str:
    sampling, interval = results["run"]["sampling"], results["interval"]
    sampled = results["subsets_sampled_at"]
    over = "all subsets of the candidates" if not sampled else f"a sample of the subsets at N = {_listed(sampled)}"
    run = results["run"]
    asked = run["data"].get("text") or f"{results['problems']:,} problems"
    heads = {name: head.get("shown") for name, head in run["heads"].items()}
    shown = "".join(f" The head {name} was shown {problems}." for name, problems in heads.items() if problems)
    return (
        f"{asked}, {results['candidates']} candidates each, temperature "
        f"{sampling['temperature']:g}, top-p {sampling['top_p']:g}, seed {results['run']['seed']}. Accuracies are "
        f"means over {over}; in brackets the {interval['level']:.0%} interval of {interval['resamples']:,} bootstrap "
        f"resamples of the problems.{shown}"
    )


def _accuracies(results: Mapping[str, Any]) -> str:
    sizes, main = [str(size) for size in results["sizes"]], str(results["main_size"])
    header = ["picked by", *(f"N = {size}" for size in sizes), f"interval at {main}", f"gap closed at {main}"]
    rows = []
    for name, figures in results["accuracy"].items():
        gap = results["gap_closed"].get(name, {}).get(main)
        shown = "" if gap is None or gap["value"] is None else f"{gap['value']:z.0%} {_interval(gap, 'z.0%')}"
        rows.append([name, *(f"{figures[size]['value']:.3f}" for size in sizes), _interval(figures[main]), shown])
    return (
        _table(header, rows)
        + "\n\nThe gap is that from pass@1 to the oracle, which picks right wherever any candidate is right. "
        + _legend(results)
    )


def _legend(results: Mapping[str, Any]) -> str:
    heads = list(results["run"]["heads"])
    if not heads:
        return "There is no head: the rules are those that need none."
    other = "the score of the external file" if results["run"]["external"] else "the mean log-probability"
    calibrated = [name for name in heads if results["run"]["heads"][name]["calibrated"]]
    weight = "P(correct)" if len(calibrated) == len(heads) else "P(correct), without a calibration sigmoid(score),"
    return (
        f"A head's vote adds up {weight} by answer, `calibrated` likelihood ratios; `ranking` and `scaling` "
        f"combine {heads[0]} with {other}, as SWIFT does."
    )


def _differences(results: Mapping[str, Any]) -> Iterator[str]:
    main, judged = str(results["main_size"]), results["difference"]
    if not judged:
        return
    others = [name for name in results["accuracy"] if name in BASELINES or name in results["run"]["heads"]]
    rows = [[other, *(_signed(judged[name].get(other, {}).get(main)) for name in judged)] for other in others]
    yield f"Differences at N = {main}, each of the heads less each of the others:\n\n" + _table(["less", *judged], rows)


def _ranking(results: Mapping[str, Any]) -> str:
    rows = [[name, _number(figure), _interval(figure)] for name, figure in results["auroc"].items()]
    return (
        "Within-problem AUROC: the chance that a right candidate outranks a wrong one of the same problem, the mean "
        "over the problems that have both (fewer tokens rank higher in `length`):\n\n"
        + _table(["score", "AUROC", "interval"], rows)
    )


def _calibration(results: Mapping[str, Any]) -> Iterator[str]:
    for name, figures in results["calibration"].items():
        if figures is not None:
            yield (
                f"Expected calibration error of {name} in 10 bins of equal count: {figures['candidates']['error']:.3f} "
                f"over all candidates, {figures['picks']['error']:.3f} over its picks out of {figures['picks_out_of']}."
            )
    for name, figures in results["confidence"].items():
        if figures is not None:
            gain = figures["gain"]
            yield (
                f"P(correct) of {name}'s calibrated picks out of {figures['picks_out_of']}, all candidates together: "
                f"calibration error {figures['error']:.3f}; without the least sure {1 - figures['kept_share']:.0%} "
                f"they are right at {figures['kept_accuracy']:.3f} instead of {figures['accuracy']:.3f} "
                f"({gain['value']:+.3f}, {gain['low']:+.3f} to {gain['high']:+.3f})."
            )


def _families(results: Mapping[str, Any]) -> Iterator[str]:
    names = [name for name in results["accuracy"] if "+" not in name]
    for field, families in results["families"].items():
        rows = [
            [family, f"{figures['problems']:,}", *(_number(figures["accuracy"][name]) for name in names)]
            for family, figures in families.items()
        ]
        yield f"By {field} of the problems at N = {results['main_size']}:\n\n" + _table(
            [field, "problems", *names], rows
        )


def _cost(results: Mapping[str, Any]) -> str:
    usage, timings, machine = results["usage"], results["timings"], results["run"]["machine"]
    text = (
        f"Tokens: {usage['prompt_tokens']:,} of prompts, each read once, and {usage['completion_tokens']:,} of "
        f"candidates ({usage['completion_tokens_per_candidate']:.1f} each)."
    )
    if timings["total_s"] > 0:
        parts = ", ".join(f"{name} {timings[f'{key}_s']:.1f} s" for name, key in _PARTS)
        scorers = ", ".join(results["run"]["heads"])
        text += f" Wall-clock: {timings['total_s']:.1f} s, of which {parts}"
        text += f" ({scorers})" if scorers else ""
        text += f", on {machine['processor']}, threads: {results['run']['threads']}."
    return text


def _economy(results: Mapping[str, Any]) -> Iterator[str]:
    economy = results.get("economy")
    if economy is None:
        return
    most = max(results["sizes"])
    rows = []
    for size, figures in economy["fixed"].items():
        accuracy = results["accuracy"][f"{economy['head']} calibrated"][size]
        spent = [f"{figures['tokens']:.0f}", "", _milliseconds(figures["seconds"]), ""]
        rows.append([f"N = {size}", _number(accuracy), _interval(accuracy), "", size, *spent, "", ""])
    for name, figures in economy["plans"].items():
        rows.append(
            [
                name,
                _number(figures["accuracy"]),
                _interval(figures["accuracy"]),
                _signed(figures["less_calibrated_at_most"]),
                f"{figures['candidates']:.1f}",
                f"{figures['tokens']:.0f}",
                f"{figures['tokens_share']:.0%}",
                _milliseconds(figures["seconds"]),
                "" if figures["seconds_share"] is None else f"{figures['seconds_share']:.0%}",
                *(
                    "" if best is None else f"{_signed(best['less'])} {best['rule']}"
                    for best in (figures[f"best_at_equal_{cost}"] for cost in ("tokens", "seconds"))
                ),
            ]
        )
    header = ["", "accuracy", "interval", f"less N = {most}", "candidates", "tokens", "share", "ms", "share"]
    timed = "there are no times, see the notes"
    if economy["knee"] is not None:
        timed = f"steps of every number of rows were timed on this machine (knee {economy['knee']:.1f} rows)"
    yield (
        f"Adaptive and pruned picks by {economy['head']} calibrated, in {economy['orders']} orders of up to {most} "
        f"candidates. Tokens and decode time per problem; {timed}. Last: less the best rule with a fixed number of "
        "candidates, or a mixture of two numbers, at as many tokens, and at as much time.\n\n"
        + _table([*header, "at equal tokens", "at equal time"], rows)
    )
    errors = ", ".join(f"{name} {figures['calibration_error']:.3f}" for name, figures in economy["plans"].items())
    yield f"Calibration error of the P(correct) of these picks: {errors}."


def _ablations(results: Mapping[str, Any]) -> Iterator[str]:
    rows = results.get("ablations")
    if rows:
        main = results["main_size"]
        yield f"## Ablations at N = {main}\n\n" + _table(
            [
                "",
                "variant",
                "pass@1",
                "pick",
                "interval",
                "vote",
                "interval",
                "AUROC",
                "interval",
                "pick less the first",
            ],
            [
                [
                    row["group"],
                    row["variant"],
                    _number(row["pass@1"]),
                    _number(row["accuracy"]),
                    _interval(row["accuracy"]),
                    _number(row["vote"]),
                    _interval(row["vote"]),
                    _number(row["auroc"]),
                    _interval(row["auroc"]),
                    _signed(row["difference"]),
                ]
                for row in rows
            ],
        )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _signed(figure: Figure | None) -> str:
    """A difference with its interval; nothing for None."""
    return "" if figure is None else f"{figure['value']:+z.3f} {_interval(figure, '+z.3f')}"


def _interval(figure: Figure, form: str = "z.3f") -> str:
    if figure["low"] is None:
        return ""
    return f"[{format(figure['low'], form)}, {format(figure['high'], form)}]"


def _milliseconds(seconds: float | None) -> str:
    """Milliseconds with two digits at least; nothing for None."""
    if seconds is None:
        return ""
    return f"{1000 * seconds:.0f}" if seconds >= 0.01 else f"{1000 * seconds:.2g}"


def _number(figure: Figure) -> str:
    return "" if figure["value"] is None else f"{figure['value']:.3f}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
