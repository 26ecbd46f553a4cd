"""Catches a comparison of tokens that calls a wrong patch alike, or rounding a fault."""

import copy
import json
import random
import shutil
import subprocess
import sys

import pytest

from ci import entry, parity
from tests.engine.checkpoints import VOCABULARY, checkpoint
from tests.faults.fault import house_with
from tests.platform import trees
from tests.platform.process import WorkerError
from tests.platform.value import Platform
from tests.regression import served, toy

STEPS = 4


def arm(rounds: int = 1, slugs=None) -> dict:
    """Two prompts; the likeliest token at -0.1 nats, the next at -3; at (1, 2) a near tie."""
    tops = [[[[-0.1, 7 + step], [-3.0, 90 + step]] for step in range(STEPS)] for _ in range(2)]
    tops[1][2] = [[-0.70, 9], [-0.72, 92]]
    return {
        "tokens": [[[7, 8, 9, 10], [7, 8, 9, 10]] for _ in range(rounds)],
        "likeliest": [copy.deepcopy(tops) for _ in range(rounds)],
        "slugs": slugs,
    }


@pytest.fixture
def found() -> dict[str, dict]:
    active = {"indexer": {"state": "active"}}
    return {"pristine": arm(2), "off": arm(slugs={}), "patched": arm(slugs=active)}


@pytest.mark.parametrize(
    "said", [3, ["indexer"], {"indexer": "active"}, {"indexer": {}}, {"indexer": {"state": 3}}]
)
def test_a_report_of_another_shape_is_a_sentence_and_no_verdict(said, found):
    found["patched"]["slugs"] = said
    with pytest.raises(entry.Stop, match=r"rocm_patches\.slugs name no states"):
        parity.compare(found, ["indexer"])


def other_token(arm: dict, prompt: int, step: int, token: int) -> None:
    arm["tokens"][-1][prompt][step:] = [token] * (STEPS - step)
    best, second = arm["likeliest"][-1][prompt][step]
    arm["likeliest"][-1][prompt][step] = [[best[0], token], [second[0], best[1]]]


def shifted(arm: dict, prompt: int, step: int, nats: float) -> None:
    arm["likeliest"][-1][prompt][step][0][0] += nats


def test_arms_that_are_alike_pass(found):
    shifted(found["patched"], 0, 1, 0.05)
    result = parity.compare(found, ["indexer"])
    assert (result["verdict"], result["reasons"]) == ("PASS", [])
    none = {"largest": 0, "average": 0}
    moved = {"largest": pytest.approx(0.05), "average": pytest.approx(0.05 / 8)}
    assert result["differences"] == {"repeated": none, "off": none, "patched": moved}


def test_tokens_may_part_at_a_near_tie_and_nowhere_else(found):
    other_token(found["patched"], 1, 2, 92)
    assert parity.compare(found, ["indexer"])["verdict"] == "PASS"
    other_token(found["patched"], 0, 3, 93)
    result = parity.compare(found, ["indexer"])
    assert result["verdict"] == "FAIL"
    assert result["reasons"] == [
        "patched: prompt 0, token 3: 93, not 10; a gap of 2.9 nats is no near tie"
    ]


@pytest.mark.parametrize("nats", [-1.0, float("nan")])
def test_the_same_tokens_with_other_probabilities_are_apart(nats, found):
    shifted(found["patched"], 1, 1, nats)
    assert parity.compare(found, ["indexer"])["verdict"] == "FAIL"


def all_shifted(arm: dict, nats: float) -> None:
    for prompt in range(2):
        for step in range(STEPS):
            shifted(arm, prompt, step, nats if step % 2 else -nats)


def test_tokens_that_are_all_a_little_off_are_apart(found):
    """What a double rotation does to a model that is sure of nothing."""
    all_shifted(found["patched"], 0.09)
    result = parity.compare(found, ["indexer"])
    assert result["verdict"] == "FAIL"
    assert result["reasons"] == ["patched: 0.09 nats apart on average over 8 tokens, 0.05 allowed"]
    all_shifted(found["pristine"], 0.048)  # the second round: twice of it is allowed
    assert parity.compare(found, ["indexer"])["verdict"] == "PASS"
    all_shifted(found["pristine"], 0.048)
    assert parity.compare(found, ["indexer"])["verdict"] == "INCONCLUSIVE"


def test_a_release_that_repeats_itself_allows_its_switched_off_patches_nothing(found):
    shifted(found["off"], 0, 0, 1e-6)
    result = parity.compare(found, ["indexer"])
    assert result["reasons"] == ["off: prompt 0, token 0: 1e-06 nats apart, 0 allowed"]


def test_what_repeating_the_release_changes_is_no_fault_of_a_patch(found):
    shifted(found["pristine"], 0, 0, 0.2)
    shifted(found["off"], 0, 0, 0.3)
    shifted(found["patched"], 0, 0, 0.35)
    assert parity.compare(found, ["indexer"])["verdict"] == "PASS"


def test_a_release_that_does_not_repeat_itself_vouches_for_nothing(found):
    shifted(found["pristine"], 0, 0, 3.0)
    for prompt in range(2):
        other_token(found["patched"], prompt, 0, 93)
    result = parity.compare(found, ["indexer"])
    assert result["verdict"] == "INCONCLUSIVE"
    assert result["reasons"][0] == (
        "the release, repeated: prompt 0, token 0: 3 nats apart, 0.25 allowed"
    )


def test_arms_that_part_at_a_near_tie_before_half_of_the_tokens_are_not_alike(found):
    for arm in found.values():
        for tops in arm["likeliest"]:
            tops[0][0][1][0] = tops[0][0][0][0] - 0.1
            tops[1][1][1][0] = tops[1][1][0][0] - 0.1
    other_token(found["patched"], 0, 0, 90)
    assert parity.compare(found, ["indexer"])["verdict"] == "PASS"  # 4 of 8
    other_token(found["patched"], 1, 1, 91)
    result = parity.compare(found, ["indexer"])
    assert (result["verdict"], result["compared"]["patched"]) == ("INCONCLUSIVE", 1)
    assert result["reasons"] == [
        "patched: parted after 1 of 8 tokens, fewer than 50%: too few to judge"
    ]


@pytest.mark.parametrize("state", ["inactive: no such operator", None])
def test_a_slug_that_did_not_run_shows_nothing(state, found):
    found["patched"]["slugs"] = {"indexer": {"state": state}} if state else None
    assert parity.compare(found, ["indexer"])["reasons"] == [f"indexer is {state}"]


# The command ---------------------------------------------------------------------------------


def run(monkeypatch, tmp_path, *arguments: str) -> int:
    given = ("--platform", "cpu", "--release", "0.5.10.post1", "--output", tmp_path / "out.json")
    monkeypatch.setattr(sys, "argv", ["parity.py", *map(str, given), *arguments])
    return entry.run("parity", parity.main)


GLM = ("--preset", "glm-5", "--arch", "gfx942")


def test_the_exit_code_is_the_verdicts(monkeypatch, tmp_path, found):
    results = iter([*found.values()] * 3)
    monkeypatch.setattr(parity, "run", lambda *_, **__: next(results))
    assert run(monkeypatch, tmp_path, *GLM, "--slugs", "indexer") == parity.ALIKE
    assert json.loads((tmp_path / "out.json").read_text())["verdict"] == "PASS"
    shifted(found["patched"], 0, 0, 2.0)
    assert run(monkeypatch, tmp_path, *GLM, "--slugs", "indexer") == parity.APART
    assert json.loads((tmp_path / "out.json").read_text())["verdict"] == "FAIL"
    shifted(found["pristine"], 0, 0, 2.0)
    assert run(monkeypatch, tmp_path, *GLM, "--slugs", "indexer") == parity.INCONCLUSIVE
    assert json.loads((tmp_path / "out.json").read_text())["verdict"] == "INCONCLUSIVE"


def test_an_arm_that_does_not_run_is_no_verdict(monkeypatch, tmp_path, capsys):
    def fails(*_, **__):
        raise WorkerError("out of memory")

    monkeypatch.setattr(parity, "run", fails)
    assert run(monkeypatch, tmp_path, *GLM) == entry.FAILED
    assert "the pristine arm did not run\nout of memory" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_a_slug_that_the_model_does_not_run_is_refused(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, *GLM, "--slugs", "rope-kv-store") == entry.REFUSED
    assert "glm-5 does not run rope-kv-store" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--slugs", "indexer,indexes"), "'indexes' in no patch of 0.5.10.post1"),
        (("--server-args", "'x"), "No closing quotation"),
        (("--steps", "0"), "0: at least 1"),
        (("--prompts", "README.md"), "README.md: Expecting value"),
        (("--prompts", "patches/0.5.9/release.json"), "no JSON list of texts"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments, sentence, monkeypatch, tmp_path, capsys):
    try:
        code = run(monkeypatch, tmp_path, *GLM, *arguments)
    except SystemExit as ended:
        code = ended.code
    assert code == entry.REFUSED
    assert sentence in capsys.readouterr().err


def test_a_model_that_the_release_cannot_start_is_refused_with_one_that_it_can(
    monkeypatch, tmp_path, capsys
):
    assert run(monkeypatch, tmp_path, *GLM, "--release", "0.5.9") == entry.REFUSED
    said = capsys.readouterr().err
    assert "transformers 4.57.1 refuses glm_moe_dsa" in said
    assert "deepseek-v3.2 runs the same slugs" in said


SMALL = (
    "--tp 1 --disable-cuda-graph --max-running-requests 8 --max-total-tokens 2048 "
    "--context-length 256 --sampling-backend pytorch --grammar-backend none --dtype bfloat16 "
    "--skip-server-warmup --log-level error --random-seed 0"
)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_real_engines_are_alike_and_one_that_rotates_twice_is_apart(tmp_path):
    """The whole command; a model that is trained to answer, asked what its answer depends on."""
    numbers = random.Random(3)
    asked = [toy.text([toy.problem(numbers) for _ in range(6)]) for _ in range(8)]
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps([text.rpartition(toy.ANSWER)[0] for text in asked]))

    def compared(name: str, *further: str):
        output = tmp_path / f"{name}.json"
        given = ["--preset", "qwen3-moe", "--release", "0.5.10.post1", "--output", output]
        given += ["--platform", "cpu", "--arch", "gfx942", "--model", toy.toy("qwen3-moe").path]
        given += ["--prompts", questions, "--steps", "2", "--server-args", SMALL]  # "#### 7"
        command = [sys.executable, trees.ROOT / "ci/parity.py", *given, *further]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert output.exists(), done.stderr
        return done.returncode, json.loads(output.read_text())

    code, found = compared("right")
    assert (code, found["verdict"], found["reasons"]) == (parity.ALIKE, "PASS", [])
    assert found["differences"]["off"] == {"largest": 0, "average": 0}
    assert found["compared"]["patched"] == found["tokens"] == 16
    [fault] = served.FAULTS["qwen3-moe"]
    with house_with(fault) as house:
        code, found = compared("faulty", "--patched-tree", str(house.tree))
    assert (code, found["verdict"]) == (parity.APART, "FAIL")
    assert all(reason.startswith("patched: prompt ") for reason in found["reasons"])


@pytest.mark.slow
def test_an_arm_is_a_real_engine_with_the_presets_flags(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(checkpoint("qwen3-moe").path, model)
    _bytes_for_tokens(model)
    asked = ["--preset", "qwen3-moe", "--release", "0.5.10.post1", "--model", str(model)]
    given = parity.parser().parse_args([*asked, "--server-args", SMALL])
    chosen = parity.preset(given.preset, given.release, "gfx942")
    result = parity.run(
        trees.patched_tree(given.release), Platform("cpu", "gfx942"), None, chosen.environment,
        flags=parity.flags_of(chosen, given), prompts=["def main():", "import"], steps=3, rounds=2,
    )  # fmt: skip
    assert [[len(tokens) for tokens in answered] for answered in result["tokens"]] == [[3, 3]] * 2
    assert result["tokens"][0] == result["tokens"][1]
    assert result["likeliest"][0] == result["likeliest"][1]
    for tokens, tops in zip(result["tokens"][0], result["likeliest"][0], strict=True):
        for token, (best, second) in zip(tokens, tops, strict=True):
            assert second[0] <= best[0] <= 0
            # Of two that are exactly as likely either may be taken.
            assert token in ([best[1], second[1]] if best[0] == second[0] else [best[1]])
    assert {slug: result["slugs"][slug]["state"] for slug in chosen.slugs} == dict.fromkeys(
        chosen.slugs, "active"
    )


def _bytes_for_tokens(model) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(alphabet) == VOCABULARY
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(model / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
