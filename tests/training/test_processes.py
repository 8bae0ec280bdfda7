"""Which rows and batches a process takes. Two processes together are tried in test_train.py."""

from __future__ import annotations

import pytest
import torch

from caffe_port.errors import CaffePortError
from caffe_port.layers import lookup
from caffe_port.training import processes


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "world", lambda: 2)
    monkeypatch.setattr(processes, "rank", lambda: 1)
    monkeypatch.setattr(processes.dist, "all_reduce", lambda value: value.mul_(2))
    monkeypatch.setattr(processes.dist, "barrier", lambda: None)


def test_alone_everything_is_mine() -> None:
    batch = torch.arange(6.0)
    assert torch.equal(processes.rows(batch), batch)
    assert list(processes.share_of(3)) == [0, 1, 2]
    assert processes.mean(torch.tensor(3.0)) == processes.total(torch.tensor(3.0)) == 3
    assert processes.first()
    module = torch.nn.Linear(2, 2)
    assert processes.wrap(module, torch.device("cpu")) is module
    stop: list[str] = []
    processes.share(stop, torch.device("cpu"))
    assert not stop
    processes.barrier()
    images = torch.rand(2, 3, 4, 5)
    assert processes.rows(images, channels_last=True).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("second_of_two")
def test_of_two_the_second_takes_the_second_half() -> None:
    assert processes.rows(torch.arange(6.0)).tolist() == [3, 4, 5]
    assert list(processes.share_of(5)) == [1, 3]
    assert not processes.first()
    assert processes.mean(torch.tensor(3.0)) == 3
    assert processes.total(torch.tensor(3.0)) == 6
    stop = ["SIGINT"]
    processes.share(stop, torch.device("cpu"))
    assert stop == ["SIGINT"]
    processes.barrier()


@pytest.mark.usefixtures("second_of_two")
def test_statistics_of_all_rows() -> None:
    """The other process is made to hold the same rows: the statistics of both are those of one, twice counted."""
    cls = lookup("BatchNorm")
    assert cls is not None
    alone, synced = (cls.make({"num_features": 3, "momentum": 0.5}) for _ in range(2))
    processes.sync_batch_norm(synced)
    x = torch.randn(4, 3, 5, 6)
    torch.testing.assert_close(synced.train()(x), alone.train()(torch.cat([x, x]))[:4])
    for blob in ("mean", "variance", "scale_factor"):
        torch.testing.assert_close(synced.get_blob(blob), alone.get_blob(blob))
    torch.testing.assert_close(synced.eval()(x), alone.eval()(x))


def test_a_device_that_is_not_there() -> None:
    with processes.group("auto") as device:
        assert device.type in ("cpu", "cuda")
    with pytest.raises(CaffePortError, match="device 'tpu9' cannot be used"), processes.group("tpu9"):
        pass
