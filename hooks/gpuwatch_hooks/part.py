"""One optimizer's share of one step while it is being measured: fields, tables, and values still on their way from a device."""

from array import array

from . import wire
from .overflow import folded
from .readback import Readback, contents

_INDEX = wire.STEP_FIELD_INDEX
_COLUMNS = len(wire.TENSOR_COLUMNS)
_ALL_COLUMNS = (1 << _COLUMNS) - 1
_EMPTY = bytes(8 * len(wire.STEP_FIELDS))


class Part:
    """Filled by the probes between an optimizer's steps; `ready` when every value is on the host; then `write`.

    `step` is set when the optimizer steps. Times are CLOCK_MONOTONIC nanoseconds.
    """

    at_once = ("cpu",)  # kinds of device whose values are on the host already

    def __init__(self, entry):
        self.entry = entry
        self.step = 0
        self.complete = False
        self.closure_calls = None  # a number once the step was given a closure
        self.gradients = None  # what the gradients probe has measured so far
        self.updates = None
        self.several = None  # the optimizers, when the entry stands for several
        self.groups = []  # flat: learning rate, weight decay of each group
        self.due = ()  # families of statistics whose turn it is in this step
        self.fields = {}  # wire.STEP_FIELDS name -> value (a float; NaN is a value)
        self._tables = []  # (kind, family, mask of columns or exponent, flat array)
        self._readback = None
        self._waiting = []  # (places in the readback, callback)
        self._last = []  # callbacks for when every value is here
        self.ended = 0  # perf_counter_ns when it was closed
        self.tensors = 0  # that the entry had when the part was closed
        self._layout = (0, 0, 0)
        self._numels = []

    def set(self, name, value):
        """Field `name` of wire.STEP_FIELDS has this value. Raises KeyError or TypeError for what is none or no number."""
        if name not in _INDEX:
            raise KeyError(name)
        self.fields[name] = float(value)

    def get(self, name):
        """The field's value, or None when it is absent."""
        return self.fields.get(name)

    def param_groups(self):
        """The parameter groups behind this part, at most wire.MAX_GROUPS."""
        if self.several is None:
            optimizer = self.entry.optimizer()
            return optimizer.param_groups[: wire.MAX_GROUPS] if optimizer is not None else []
        optimizers = self.several
        return [group for optimizer in optimizers if optimizer is not None for group in optimizer.param_groups][
            : wire.MAX_GROUPS
        ]

    def read(self, tensors, callback):
        """Call `callback(*lists)` with the flat values of each tensor: at once for CPU tensors, else when they have arrived."""
        if all(tensor.device.type in self.at_once for tensor in tensors):
            callback(*[tensor.reshape(-1).tolist() for tensor in tensors])
            return
        if self._readback is None:
            self._readback = Readback()
        self._waiting.append(([self._readback.add(tensor) for tensor in tensors], callback))

    def read_bytes(self, tensor, callback):
        """Call `callback(bytes)` with the contents of a uint8 tensor: at once for a CPU tensor, else when they have arrived."""
        if tensor.device.type in self.at_once:
            callback(contents(tensor))
            return
        if self._readback is None:
            self._readback = Readback()
        place = self._readback.add(tensor)
        self._waiting.append(((place,), callback))

    def add_rows(self, family, cells, columns=_ALL_COLUMNS):
        """A table of statistics: `cells` float32[rows of the entry * 8] as array("f"), `columns` the mask of measured ones."""
        self._tables.append((wire.KIND_TENSORS, family, columns, cells))

    def add_histograms(self, family, cells, first_exponent=wire.HISTOGRAM_FIRST_EXPONENT):
        """A table of histograms: `cells` u32[rows of the entry * 64] as array("I")."""
        self._tables.append((wire.KIND_HISTOGRAMS, family, first_exponent, cells))

    def at_end(self, callback):
        """Call `callback(part)` when every value is on the host, just before the part is written."""
        self._last.append(callback)

    def close(self):
        """No more measuring: queue the copies of what is still on a device."""
        entry = self.entry
        # of now: names may change, and the optimizer may be gone, before the device has delivered
        self._layout = (entry.table_version, entry.first_row, entry.rows)
        self.tensors = len(entry.parameters)
        self._numels = entry.numels
        if self._readback is not None and not self._readback.launched:
            self._readback.launch()

    def ready(self):
        """Whether everything is on the host; never waits."""
        return self._readback is None or self._readback.ready()

    def write(self, session, guard):
        """Finish what waited for values, then publish: the tables first, the STEP record that commits them last."""
        if self._readback is not None:
            waiting, self._waiting = self._waiting, []
            for places, callback in waiting:
                guard.run("readback", callback, *[self._readback.values(place) for place in places])
            self._readback = None
        for callback in self._last:
            guard.run("finish", callback, self)
        entry = self.entry
        for table in self._tables:
            self._write_table(session, *table)
        flags = wire.STEP_COMPLETE if self.complete else 0
        groups = self.groups[: 2 * wire.MAX_GROUPS]
        mask, cells = 0, array("d", _EMPTY)
        for name, value in self.fields.items():
            index = _INDEX[name]
            cells[index] = value
            mask |= 1 << index
        session.write(wire.KIND_STEP, wire.pack_step(self.step, entry.index, flags, mask, cells, groups))

    def _write_table(self, session, kind, family, detail, cells):
        version, first_row, rows = self._layout
        width = _COLUMNS if kind == wire.KIND_TENSORS else wire.HISTOGRAM_BUCKETS
        if len(cells) > rows * width:
            cells = folded(cells, rows, width, self._numels)
        head = wire.TENSORS_HEAD if kind == wire.KIND_TENSORS else wire.HISTOGRAMS_HEAD
        body, row_bytes = memoryview(cells).cast("B"), 4 * width
        family_index = wire.FAMILIES.index(family)
        together = wire.rows_per_slot(row_bytes, head.size)
        for start in range(0, rows, together):
            count = min(together, rows - start)
            packed = head.pack(self.step, self.entry.index, family_index, version, first_row + start, count, detail)
            session.write(kind, packed, body[start * row_bytes : (start + count) * row_bytes])
