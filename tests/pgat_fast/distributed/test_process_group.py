"""Shards of a batch, and what a collective does when a rank is missing or fails."""

from pathlib import Path

import pytest
import torch

from pgat_fast import exit_codes
from pgat_fast.distributed.process_group import DistributedGroup, SingleProcess
from pgat_fast.errors import ConfigError, RankError
from tests.forked_command import CONTEXT
from tests.pgat_fast.distributed.rank_processes import free_port


def rank_of(rank: int, size: int) -> SingleProcess:
    group = SingleProcess()
    group.rank, group.size = rank, size
    return group


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_shards_partition_the_batch_and_weighted_means_average_to_its_mean(size: int) -> None:
    indices = torch.arange(100, 107)
    ranks = [rank_of(rank, size) for rank in range(size)]
    shards = [rank.shard(indices) for rank in ranks]
    assert sorted(torch.cat(shards).tolist()) == indices.tolist()
    mean = sum(float(shard.double().mean()) * rank.loss_weight(7) for shard, rank in zip(shards, ranks, strict=True))
    assert mean / size == pytest.approx(103)


def test_collectives_of_a_single_process_return_its_own_value() -> None:
    group = SingleProcess()
    assert group.all_gather(1) == [1]
    assert group.all_gather_requests(None) == []
    assert group.all_gather_requests("stop") == ["stop"]
    assert group.run_on_main(lambda: 2) == 2
    with pytest.raises(KeyError):
        group.poll(lambda: {}["a"])


def test_dropout_of_a_rank_depends_on_seed_rank_and_step_alone() -> None:
    group = object.__new__(DistributedGroup)

    def drawn(rank: int, step: int) -> float:
        group.rank = rank
        group.seed_step(7, step)
        return float(torch.rand(()))

    first = drawn(0, 5)
    assert len({first, drawn(1, 5), drawn(0, 6)}) == 3
    assert drawn(0, 5) == first
    state = torch.get_rng_state()
    SingleProcess().seed_step(7, 5)
    assert torch.equal(torch.get_rng_state(), state), "a single process is not seeded anew"


def set_environment(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    defaults = {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    for name, value in (defaults | variables).items():
        monkeypatch.setenv(name, value)


def test_ranks_that_do_not_join_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch)
    with pytest.raises(RankError, match=r"rank 1, 2 of 3 did not join within 0\.5 s \(run\.rank_timeout_seconds\)"):
        DistributedGroup(torch.device("cpu"), 0.5)


def test_restarts_on_several_machines_need_a_store_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(
        monkeypatch, LOCAL_WORLD_SIZE="1", TORCHELASTIC_RUN_ID="job", TORCHELASTIC_MAX_RESTARTS="1",
        TORCHELASTIC_USE_AGENT_STORE="True",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        DistributedGroup(torch.device("cpu"), 0.5)


def use_collectives(rank: int, port: int, folder: Path) -> None:
    """Call every collective in one of three ranks; the last rank ends before the last one."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_environment(monkeypatch, RANK=str(rank), MASTER_PORT=str(port))
        torch.set_num_threads(1)
        group = DistributedGroup(torch.device("cpu"), 20)
        assert group.all_gather(rank) == [0, 1, 2]
        assert group.all_gather_requests(None) == []
        assert group.all_gather_requests(f"from {rank}" if rank else None) == ["from 1", "from 2"]
        assert group.run_on_main(lambda: f"made by {rank}") == "made by 0"
        assert group.all_reduce_sum(torch.tensor([1.0, rank])).tolist() == [3.0, 3.0]

        def fail() -> None:
            raise ConfigError("no such file")

        with pytest.raises(ConfigError if rank == 0 else RankError) as error:
            group.run_on_main(fail)
        assert exit_codes.of_error(error.value) == exit_codes.WRONG_INPUT
        if rank == 2:
            return
        with pytest.raises(RankError) as lost:
            group.all_gather(rank)
        (folder / str(rank)).write_text(str(lost.value))
        group.close(failed=True)


@pytest.mark.multiprocess
def test_collectives_of_three_ranks_and_the_error_when_one_has_ended(tmp_path: Path) -> None:
    port = free_port()
    processes = [CONTEXT.Process(target=use_collectives, args=(rank, port, tmp_path)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    for rank in (0, 1):
        text = (tmp_path / str(rank)).read_text()
        assert f"rank {rank} of 3 cannot reach all others (limit 20 s, run.rank_timeout_seconds): " in text
        assert "another rank has ended or hangs" in text
