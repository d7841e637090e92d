"""A layout on the device, and the addresses that were sent there last."""

#: Layouts kept for each device and stream: gradients, weights and updates of a few optimizers.
MAX_PLANS = 16


class Plan:
    """Tables of a chunks.Layout, uploaded once; addresses of the tensors, uploaded when they have changed."""

    def __init__(self, device, layout):
        self.layout = layout
        self.uploads = 0  # of addresses
        self._device = device
        self._table = device.empty(max(1, len(layout.table)))
        self._pointers = device.empty(max(1, 8 * layout.count))
        device.upload(self._table, layout.table)
        self._addresses = None

    def point_at(self, tensors, address=None):
        """Send the tensors' addresses to the device unless they are there. `address`: torch's own method, if it is at hand."""
        import torch

        addresses = tuple(map(address or torch.Tensor.data_ptr, tensors))
        if addresses != self._addresses:
            self._addresses = None  # in case the upload fails
            self._device.upload(self._pointers, _packed(addresses))
            self._addresses = addresses
            self.uploads += 1

    def addresses_of(self):
        """(pointers, tensors, chunks): where the three tables lie on the device."""
        table = self._table.data_ptr()
        return self._pointers.data_ptr(), table, table + self.layout.chunks_offset


def _packed(addresses):
    from array import array

    return array("Q", addresses).tobytes()
