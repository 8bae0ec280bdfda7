"""Which rows and batches a process takes. Two processes together are tried in test_train.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from caffe_port import api
from caffe_port.errors import CaffePortError
from caffe_port.net import fusion
from caffe_port.training import processes


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes, "rank", lambda: 1)
    monkeypatch.setattr(processes.dist, "all_reduce", lambda value: value.mul_(2))
    monkeypatch.setattr(processes.dist, "barrier", lambda: None)


def test_alone_everything_is_mine() -> None:
    batch = torch.arange(6.0)
    assert torch.equal(processes.rows(batch), batch)
    assert list(processes.share_of(3)) == [0, 1, 2]
    assert processes.mean(torch.tensor(3.0)) == processes.total(torch.tensor(3.0)) == 3
    assert processes.is_first()
    module = torch.nn.Linear(2, 2)
    assert processes.wrap(module, torch.device("cpu")) is module
    stop: list[str] = []
    processes.share_stop(stop, torch.device("cpu"))
    assert not stop
    processes.barrier()
    images = torch.rand(2, 3, 4, 5)
    assert processes.rows(images, channels_last=True).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("second_of_two")
def test_of_two_the_second_takes_the_second_half() -> None:
    assert processes.rows(torch.arange(6.0)).tolist() == [3, 4, 5]
    assert list(processes.share_of(5)) == [1, 3]
    assert not processes.is_first()
    assert processes.mean(torch.tensor(3.0)) == 3
    assert processes.total(torch.tensor(3.0)) == 6
    stop = ["SIGINT"]
    processes.share_stop(stop, torch.device("cpu"))
    assert stop == ["SIGINT"]
    processes.barrier()


@pytest.mark.usefixtures("second_of_two")
def test_statistics_of_all_rows(tmp_path: Path) -> None:
    """The other process is made to hold the same rows: the statistics of both are those of one, twice counted."""
    (tmp_path / "n.prototxt").write_text(
        """name: "n" input: "x" input_shape { dim: 4 dim: 3 dim: 5 dim: 6 }
        layer { name: "bn" type: "BatchNorm" bottom: "x" top: "y" batch_norm_param { moving_average_fraction: 0.5 } }
        layer { name: "scale" type: "Scale" bottom: "y" top: "z" scale_param { bias_term: true } }"""
    )
    alone, synced = (api.load(tmp_path / "n.prototxt") for _ in range(2))
    before = dict(synced.named_buffers())
    processes.sync_batch_norm(synced)
    assert isinstance(synced.bn, processes.SyncBatchNorm)
    assert synced.bn.args == alone.bn.args
    assert all(value is before[name] for name, value in synced.named_buffers()), "an optimiser may hold these"
    assert list(synced.state_dict()) == list(alone.state_dict())
    assert list(synced.caffe_layers()) == list(alone.caffe_layers())
    x = torch.randn(4, 3, 5, 6)
    torch.testing.assert_close(synced.train()(x), alone.train()(torch.cat([x, x]))[:4])
    for blob in ("mean", "variance", "scale_factor"):
        torch.testing.assert_close(synced.bn.get_blob(blob), alone.bn.get_blob(blob))
        alone.bn.set_blob(blob, synced.bn.get_blob(blob))
    assert torch.equal(synced.eval()(x), alone.eval()(x))
    assert synced.bn in fusion._KEPT, "in eval() it is one with its Scale, as BatchNorm is"


def test_a_device_that_is_not_there() -> None:
    with processes.group("auto") as device:
        assert device.type in ("cpu", "cuda")
    with pytest.raises(CaffePortError, match="device 'tpu9' cannot be used"), processes.group("tpu9"):
        pass
