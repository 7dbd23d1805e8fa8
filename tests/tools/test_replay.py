"""The replay of a step that was not finite, from the command line."""

import torch


def test_a_run_that_diverged_is_replayed_by_the_command_it_names(tool, toy):
    done = tool("train_det.py", toy.config, "optimizer.lr=1e9", "train.epochs=20")
    assert done.status == 2
    command = done.err.rpartition(": python tools/")[2].split()
    assert command[0] == "replay.py"
    again = tool(*command, "--device", "cpu")
    assert (again.status, again.err) == (0, "")
    assert again.out.splitlines()[-1] == "reproduced"
    assert "first output that is not finite: " in again.out

    state = toy.run / "nonfinite" / command[1].rpartition("/")[2] / "state.pt"
    content = torch.load(state, weights_only=True)
    content["model"] = {key: torch.zeros_like(value) for key, value in content["model"].items()}
    torch.save(content, state)
    sound = tool(*command, "--device", "cpu")
    assert sound.status == 3
    assert sound.out.splitlines()[-1] == "not reproduced: all is finite this time"


def test_what_is_no_report_is_refused_in_a_line(tool, tmp_path):
    done = tool("replay.py", tmp_path / "nothing")
    assert done.status == 2
    assert done.err.startswith(f"{tmp_path / 'nothing'} is no report of a step")
    assert done.err.count("\n") == 1
