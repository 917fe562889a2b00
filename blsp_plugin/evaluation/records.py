"""Answers on disk: JSON lines that survive a kill and know when they are stale.

While the work runs, lines are only appended; a line torn by a kill is dropped
at the next start. The first line holds all settings that the answers depend
on: answers made with others are set aside, never mixed in.

Authors
 * The blsp_plugin team 2026
"""

import glob
import json
import os

from speechbrain.utils.distributed import ddp_barrier, run_on_main
from speechbrain.utils.logger import get_logger

from blsp_plugin.distributed import ranks
from blsp_plugin.files import atomic_write

__all__ = ["Records"]

logger = get_logger(__name__)


class Records:
    """A resumable file of records, one a clip.

    Every process of a distributed run opens it; each appends to a file of its
    own, and the main one brings them together at the start and at the end.

    Arguments
    ---------
    path : str
        The file, ``*.jsonl``.
    settings : dict
        All that the records depend on; JSON values.

    Example
    -------
    >>> path = getfixture("tmp_path") / "asr.whisper.jsonl"
    >>> Records(path, {"model": "a"}).append([{"id": "1", "text": "hello"}])
    >>> Records(path, {"model": "a"}).known["1"]["text"]
    'hello'
    >>> Records(path, {"model": "b"}).known  # set aside: another model
    {}
    """

    def __init__(self, path, settings):
        self.path = os.fspath(path)
        self.settings = json.loads(json.dumps(settings))
        self.known = {}
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        self.gather()

    def append(self, records):
        """Write records; they are safe from a kill when this returns.

        Arguments
        ---------
        records : list of dict
            JSON values; each has an ``id``.
        """
        rank, _ = ranks()
        path = f"{self.path}.rank{rank}" if rank else self.path
        with open(path, "a", encoding="utf-8", newline="") as stream:
            if stream.tell() == 0:
                stream.write(_line({"settings": self.settings}))
            stream.writelines(map(_line, records))
        self.known.update((record["id"], record) for record in records)

    def gather(self):
        """Bring the files of all processes together; all must call it."""
        ddp_barrier()  # they may still be writing
        self.known = run_on_main(self._gather)

    def rewrite(self, records):
        """Put the file in its final form; one process calls it.

        Arguments
        ---------
        records : list of dict
            These come first; others that are known stay behind them.
        """
        first = {record["id"]: record for record in records}
        self.known = {**first, **self.known, **first}
        self._write(self.known)

    def _gather(self):
        known = {}
        parts = sorted(glob.glob(glob.escape(self.path) + ".rank*"))
        for path in [self.path, *parts]:
            settings, records = _read(path)
            if settings == self.settings:
                known.update((record["id"], record) for record in records)
            elif records and path == self.path:
                self._set_aside(settings or {}, len(records))
        self._write(known)
        for path in parts:
            os.remove(path)
        return known

    def _write(self, known):
        with atomic_write(self.path) as stream:
            stream.write(_line({"settings": self.settings}))
            stream.writelines(map(_line, known.values()))

    def _set_aside(self, old, count):
        """Keep stale records in another file and say what made them stale."""
        changed = [
            key
            for key in sorted({*old, *self.settings})
            if old.get(key) != self.settings.get(key)
        ]
        stale = self.path + ".stale"
        os.replace(self.path, stale)
        logger.warning(
            "%s: its %d records were made with another %s; they are set "
            "aside as %s and made again",
            self.path,
            count,
            ", ".join(changed),
            stale,
        )


def _line(record):
    return json.dumps(record, ensure_ascii=False) + "\n"


def _read(path):
    """Settings and records of a file; whatever a kill tore is left out."""
    settings, records = None, []
    if os.path.isfile(path):
        with open(path, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if not isinstance(record, dict):
                    continue
                if "id" in record:
                    records.append(record)
                else:
                    settings = record.get("settings", settings)
    return settings, records
