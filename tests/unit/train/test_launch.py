"""Ranks are told who they are, whoever started them."""

import pytest

from restomod.errors import UserError
from restomod.train.launch import EXIT_CODE, adopt_launcher, hosts, leave_code, leave_message

TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_TASKS_PER_NODE": "4,3",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
}


def adopted(**changes: str | None) -> dict[str, str]:
    environment = {k: v for k, v in {**TASK, **changes}.items() if v is not None}
    before = dict(environment)
    adopt_launcher(environment)
    return {k: v for k, v in environment.items() if before.get(k) != v}


def test_srun_tasks_become_ranks():
    assert adopted() == {
        "RANK": "5",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "3",
        "NODE_RANK": "1",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "14711",
    }


def test_rank_of_whose_node_nothing_is_said_has_one_of_its_own():
    environment = {"RANK": "3", "WORLD_SIZE": "4"}
    adopt_launcher(environment)
    assert environment["LOCAL_RANK"] == "0"
    assert environment["LOCAL_WORLD_SIZE"] == "1"
    assert environment["NODE_RANK"] == "3"


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"SLURM_TASKS_PER_NODE": "4(x2)"}, "4"),
        ({"SLURM_TASKS_PER_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}, "2"),
        ({"SLURM_TASKS_PER_NODE": None, "SLURM_NTASKS_PER_NODE": "4"}, "4"),
        ({"SLURM_TASKS_PER_NODE": None, "SLURM_NNODES": "2"}, "4"),
        ({"SLURM_TASKS_PER_NODE": None}, "7"),
    ],
)
def test_ranks_of_a_node_are_counted(changes, count):
    assert adopted(**changes)["LOCAL_WORLD_SIZE"] == count


def test_rank_0_is_found_on_the_steps_first_host_then_the_jobs_then_where_srun_runs():
    assert adopted(SLURM_STEP_NODELIST="gpu08")["MASTER_ADDR"] == "gpu08"
    address = adopted(SLURM_JOB_NODELIST=None, SLURM_LAUNCH_NODE_IPADDR="10.0.0.9")["MASTER_ADDR"]
    assert address == "10.0.0.9"
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        adopted(SLURM_JOB_NODELIST=None)


def test_what_is_set_stays():
    changed = adopted(SLURM_JOB_NODELIST=None, MASTER_ADDR="head", MASTER_PORT="29500")
    assert changed["RANK"] == "5"
    assert not {"MASTER_ADDR", "MASTER_PORT"} & changed.keys()
    # torchrun or composer on a node of a job
    assert adopted(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1") == {}


def test_steps_of_a_job_meet_on_ports_of_their_own():
    ports = {adopted(SLURM_STEP_ID=str(step))["MASTER_PORT"] for step in range(3)}
    assert len(ports) == 3
    assert 10_000 <= int(adopted(SLURM_JOB_ID="99999999")["MASTER_PORT"]) < 30_000


def test_one_task_and_a_batch_script_are_no_ranks():
    assert adopted(SLURM_STEP_NUM_TASKS="1") == {}
    assert adopted(SLURM_PROCID=None) == {}
    assert adopted(ENVIRONMENT="BATCH") == {}
    assert adopted(ENVIRONMENT="BATCH", SLURM_STEP_ID="0")["RANK"] == "5"


def test_torchruns_node_number_becomes_composers():
    environment = {"RANK": "3", "GROUP_RANK": "1"}
    adopt_launcher(environment)
    assert environment["NODE_RANK"] == "1"


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ("node1", ["node1"]),
        ("node[1-3,7]", ["node1", "node2", "node3", "node7"]),
        ("login,node[08-11]", ["login", "node08", "node09", "node10", "node11"]),
        ("a[1-2]-ib[0,3],b", ["a1-ib0", "a1-ib3", "a2-ib0", "a2-ib3", "b"]),
    ],
)
def test_node_lists_are_expanded(nodes, names):
    assert hosts(nodes) == names


def test_exit_code_is_left_beside_torchruns_logs(tmp_path):
    assert leave_code(2, {}) == 2
    assert leave_code(2, {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")}) == 2
    assert (tmp_path / EXIT_CODE).read_text() == "2\n"
    assert leave_code(1, {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "gone" / "error.json")}) == 1


def test_torchrun_tells_the_message_of_a_mistake_as_the_root_cause(tmp_path):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    reply = tmp_path / "error.json"
    leave_message("error: my.yaml:3: no such key", {"TORCHELASTIC_ERROR_FILE": str(reply)})
    failures = {
        rank: ProcessFailure(local_rank=rank, pid=rank, exitcode=2, error_file=str(file))
        for rank, file in enumerate((reply, tmp_path / "none"))
    }
    text = str(ChildFailedError("train.py", failures))
    assert "my.yaml:3: no such key" in text.partition("Root Cause")[2]
    leave_message("error", {})
