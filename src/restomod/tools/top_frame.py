"""One picture of a run for a terminal: `restomod top` shows it anew every second.

In: what is followed of a run, the console's width. Out: something that rich prints.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from restomod.tools.pages.markup import bytes_text
from restomod.tools.record.following import Followed, Line
from restomod.tools.record.metrics_log import number
from restomod.units import duration

BLOCKS = "▁▂▃▄▅▆▇█"
BAR = ("█", "░")
PLAIN_BLOCKS, PLAIN_BAR = "_.-~=+*#", ("#", ".")
"""For terminals that cannot show the others."""
MOST_COLUMNS = 100
SHOWN_EVENTS = 6
SILENT_S = 120.0
"""A run that says nothing for so long, and for ten times its usual pause, is told of."""
NARROW = 72
"""Columns below which figures stand one below the other."""
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
SHOWN_DETAILS = (
    "reason", "host", "world_size", "changed", "from_checkpoint", "spike_step", "loss",
    "deviations", "first_row", "rows", "lane", "stream", "file",
)  # fmt: skip
"""Of an event, besides its time and step."""
BAD = ("skipped_step", "rollback", "skip", "failure", "nonfinite")


def frame(run: Followed, console: Console) -> RenderableType:
    """Return the picture."""
    parts: list[RenderableType] = [_headline(run)]
    train = run.last.get("train")
    if train is None:
        parts.append(Text("no step is logged yet"))
    else:
        parts += [_progress(run, train, console), _losses(run, train, console)]
        parts.append(_figures(train, console.width))
    for part in (_held_out(run, console.width), _checkpoints(run), _events(run, console.width)):
        if part is not None:
            parts += [Text(), part]
    return Group(*parts)


def state(run: Followed) -> tuple[str, str]:
    """Return what the run is doing, and the colour that says whether that is well."""
    newest = run.last.get(run.newest, {})
    if run.newest == "end":
        return "complete", "green"
    requeue = run.requeue()
    if run.newest == "stop" or requeue:
        reason = newest.get("reason") if run.newest == "stop" else requeue.get("reason")
        return f"stopped ({reason}), wants to go on", "yellow"
    if run.newest in ("failure", "nonfinite"):
        return f"failed: {newest.get('reason', '')}", "red"
    age = run.age_s()
    times = [line["time_s"] for line in run.recent]
    pause = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
    if age > max(SILENT_S, 10 * pause):
        return f"silent for {duration(age)}", "red"
    return ("training" if run.recent else "starting"), "green"


def _headline(run: Followed) -> Text:
    says, colour = state(run)
    begins = run.beginning
    text = Text.assemble((run.folder.name, "bold"), "  ", (says, colour))
    if phase := run.last.get("train", {}).get("phase"):
        text.append(f"  phase {phase}")
    if begins.get("world_size"):
        text.append(f"  {begins['world_size']} x {begins.get('device', 'rank')}", "dim")
    return text


def _progress(run: Followed, train: Line, console: Console) -> RenderableType:
    """Return step and tokens out of all, the bar, and the time left."""
    begins = run.beginning
    tokens, end = train["tokens"], begins.get("end_tokens")
    pace = run.tokens_per_wall_s()
    share = min(tokens / end, 1.0) if end else None
    text = Text(f"step {train['step']:,}")
    if begins.get("end_step"):
        text.append(f" of {begins['end_step']:,}")
    text.append(f"   {short(tokens)}" + (f" of {short(end)}" if end else "") + " tokens")
    if share is not None:
        text.append(f"   {share:.1%}")
    text.append(f"   {duration(train['time_s'])} so far")
    if end and pace and run.newest not in ("end", "stop", "failure", "nonfinite"):
        text.append(f", {duration((end - tokens) / pace)} left", "bold")
    if share is None:
        return text
    columns = min(console.width, MOST_COLUMNS)
    done = int(share * columns)
    full, empty = BAR if _rich(console) else PLAIN_BAR
    return Group(text, Text.assemble((full * done, "green"), (empty * (columns - done), "dim")))


def _losses(run: Followed, train: Line, console: Console) -> Text:
    encoding = console.encoding.lower()
    blocks = BLOCKS if encoding.startswith("utf") else PLAIN_BLOCKS
    loss = number(train.get("loss"))
    text = Text("loss ", "dim")
    text.append(
        "not finite" if loss is None else f"{loss:.4f}", "bold red" if loss is None else "bold"
    )
    means = [bucket.spreads["loss"].mean for bucket in run.losses.buckets()]
    wide = console.width >= NARROW
    room = console.width - len(text) - (24 if wide else 3)
    text.append("  " + sparkline(means, min(room, 60), blocks))
    if means and wide:
        text.append(f"  {means[0]:.3f} at first", "dim")
    return text


def _rich(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")


def sparkline(values: list[float], width: int, blocks: str = BLOCKS) -> str:
    """Return values as a line of blocks, the lowest and the highest of which span all heights."""
    if not values or width < 1:
        return ""
    group = -(-len(values) // width)
    means = [sum(part) / len(part) for part in _parts(values, group)]
    low, high = min(means), max(means)
    steps = len(blocks) - 1
    scale = steps / (high - low) if high > low else 0.0
    return "".join(blocks[round((mean - low) * scale)] for mean in means)


def _parts(values: list[float], size: int) -> list[list[float]]:
    return [values[n : n + size] for n in range(0, len(values), size)]


def _figures(train: Line, width: int) -> Table:
    """Return the newest line's figures, in columns where there is room for them."""
    shown = [
        ("tokens/s", short(train.get("tokens_per_s"))),
        ("step", _form(train, "step_s", "{:.3g} s")),
        ("MFU", _form(train, "mfu", "{:.1%}")),
        ("data wait", _form(train, "data_wait_fraction", "{:.1%}")),
        ("packing", _form(train, "packing_efficiency", "{:.2%}")),
        ("memory", _form(train, "memory_gb", "{:.1f} GB")),
        ("grad norm", _form(train, "grad_norm", "{:.3g}")),
        ("clipped", _form(train, "clip_rate", "{:.1%}")),
        ("lr", _form(train, "lr", "{:.3g}")),
        ("accuracy", _form(train, "accuracy", "{:.1%}")),
        ("mask rate", _form(train, "mask_rate", "{:.1%}")),
        ("skipped steps", _form(train, "skipped_steps", "{:,.0f}")),
    ]
    columns = 1 if width < NARROW // 2 else 2 if width < NARROW else 4
    table = Table.grid(padding=(0, 2))
    for _ in range(2 * columns):
        table.add_column(overflow="fold")
    for row in (shown[n : n + columns] for n in range(0, len(shown), columns)):
        cells = (text for name, value in row for text in (Text(name, "dim"), Text(value)))
        table.add_row(*cells)
    return table


def _form(line: Line, key: str, form: str) -> str:
    value = number(line.get(key))
    return "-" if value is None else form.format(value)


def _held_out(run: Followed, width: int) -> RenderableType | None:
    line = run.last.get("eval")
    if line is None:
        return None
    text = Text(f"held-out, step {line['step']:,}: ", "dim")
    domains: dict[str, Any] = line.get("domains", {})
    for name in sorted(domains, key=lambda name: name != "all"):
        loss = number(domains[name].get("loss"))
        text.append(f"{name} ")
        text.append("-  " if loss is None else f"{loss:.4f}  ", "bold")
    best = run.log.best_eval
    if best and best[1] is not None:
        text.append(f"best {best[0]:.4f} at step {best[1]:,.0f}", "dim")
    return text


def _checkpoints(run: Followed) -> RenderableType | None:
    if not run.checkpoints:
        return None
    last = run.checkpoints[-1]
    text = Text("checkpoints: ", "dim")
    text.append(", ".join(f"{line['step']:,}" for line in run.checkpoints))
    size = bytes_text(number(last.get("bytes")) or 0.0)
    seconds, stall_s = number(last.get("seconds")) or 0.0, number(last.get("stall_s")) or 0.0
    text.append(f" (the last: {size} in {seconds:.1f} s", "dim")
    text.append(f", training stood for {stall_s:.2f} s)", "dim")
    return text


def _events(run: Followed, width: int) -> RenderableType | None:
    events = list(run.log.events)[-SHOWN_EVENTS:]
    if not events:
        return None
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", overflow="crop")
    for _ in range(3):
        table.add_column(overflow="crop", no_wrap=True)
    for event in events:
        details = {
            key: value
            for key, value in event.items()
            if key in SHOWN_DETAILS and value not in ("", [], None)
        }
        text = "  ".join(f"{key} {_brief(value)}" for key, value in details.items())
        colour = "red" if event["event"] in BAD else ""
        table.add_row(
            Text(duration(number(event.get("time_s")) or 0.0), "dim"),
            Text(str(event["event"]), colour),
            Text(str(event.get("step", ""))),
            Text(text, "dim"),
        )
    return table


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def short(value: Any) -> str:
    """Return a number as 12.3M."""
    found = number(value)
    if found is None:
        return "-"
    for size, unit in UNITS:
        if abs(found) >= size:
            return (
                f"{found / size:.3g}{unit}" if found < 1000 * size else f"{found / size:,.0f}{unit}"
            )
    return f"{found:.0f}"
