"""Learning rate and weight decay of every parameter group, at every step: schedulers change them in between."""

import math


class GroupsProbe:
    """Reads `param_groups` as the optimizer used them. A tensor on a device is read with the step's other values."""

    name = "groups"

    def install(self, recorder):
        """Nothing to patch."""

    def after(self, part):
        groups = part.param_groups()
        if len(groups) == 1:
            values = groups[0].get("lr"), groups[0].get("weight_decay")
            if type(values[0]) is float and type(values[1]) is float:
                part.groups = values
                return
        part.groups = flat = [math.nan] * (2 * len(groups))
        for index, group in enumerate(groups):
            for offset, key in enumerate(("lr", "weight_decay")):
                value = group.get(key)
                if hasattr(value, "device"):
                    part.read([value.detach().double()], _setter(flat, 2 * index + offset))
                elif isinstance(value, (int, float)):
                    flat[2 * index + offset] = float(value)


def _setter(flat, index):
    def arrived(values):
        flat[index] = values[0]

    return arrived
