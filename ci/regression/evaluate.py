"""One run of GSM8K against one server: lm-eval makes the prompts and asks; this keeps each answer.

lm-eval repeats a failed request and knows no finish reason, so its transport is replaced: one
attempt, any failure ends the run. Its filter takes punctuation for a number: extraction.py.
"""

import asyncio
import copy
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from .errors import Refused, RunFailed
from .extraction import number
from .questions import FINISHED, GSM8K

TASK = "gsm8k_regression"
HUB = "openai/gsm8k"
FILTER = "flexible-extract"  # one of two, of which each has all samples; what it found is not used
SPLITS = {"train": "train.jsonl", "test": "test.jsonl"}


@dataclass(frozen=True)
class Settings:
    model: str  # the name in requests
    data: Path | None = None  # a folder with train.jsonl and test.jsonl; None: from the hub
    shots: int = 5
    limit: int | None = None
    protocol: str = "completions"  # or "chat"
    max_tokens: int = 512
    concurrency: int = 64
    request_seconds: float = 1800
    index_topk: int = 0


def count(settings: Settings) -> int:
    """How many questions are asked. Raises Refused."""
    there = GSM8K
    if settings.data is not None:
        path = settings.data / SPLITS["test"]
        try:
            there = sum(bool(line.strip()) for line in path.read_text("utf-8").split("\n"))
        except (OSError, ValueError) as error:
            raise Refused(no_data(settings.data, error)) from None
    return min(settings.limit or there, there)


def no_data(folder: Path, error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) else error
    where = error.filename if isinstance(error, OSError) else folder
    return (
        f"--data {folder}: {where}: {why}; it is a folder with GSM8K's "
        f"{' and '.join(SPLITS.values())}, as in github.com/openai/grade-school-math"
    )


def load(settings: Settings, work: Path) -> Any:
    """lm-eval's task with its questions, which takes no server. Raises Refused without them."""
    if settings.data is not None:  # before lm-eval imports datasets
        os.environ.setdefault("HF_DATASETS_CACHE", str(work / "datasets"))
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    path = work / f"{TASK}.yaml"
    path.write_text(_task(settings))
    where = settings.data or f"{HUB} of the hub"
    try:
        task = TaskManager(include_path=str(work), include_defaults=False).load([TASK])
    except ModuleNotFoundError:
        raise
    except Exception as error:  # whatever datasets, the hub's client and their transport raise
        said = str(error).strip().partition("\n")[0]
        raise Refused(
            f"no questions from {where}: {type(error).__name__}: {said}; without a network, give "
            f"--data FOLDER with {' and '.join(SPLITS.values())} of GSM8K"
        ) from None
    return task["tasks"][TASK]


def refuse_few_shots(settings: Settings, task: Any) -> None:
    """Before a server is started, where the model's tokenizer is on this machine; else the first
    answer of one tells how long its prompt was, as it does in a chat, whose template is its own."""
    if not settings.index_topk or settings.protocol == "chat":
        return
    from transformers import AutoTokenizer

    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            settings.model, local_files_only=True, trust_remote_code=False
        )
    except Exception:  # of whatever kind: it is not there, or not to be read here
        return
    docs = list(task.eval_docs)[: settings.limit]
    shortest = min((task.fewshot_context(doc, settings.shots) for doc in docs), key=len)
    refuse_short_prompt(len(tokenizer(shortest)["input_ids"]), settings)


def questions(settings: Settings, task: Any, url: str) -> list[dict[str, Any]]:
    """The rows of a per-question log. Raises Refused for a prompt that tests nothing, RunFailed."""
    from lm_eval.evaluator import evaluate

    model = _client(settings, url)
    task.set_config("num_fewshot", settings.shots)
    # Not simple_evaluate, which then collects, for seconds, what this machine has installed.
    found = evaluate(
        lm=model,
        task_dict={"tasks": {TASK: task}},
        limit=settings.limit,
        apply_chat_template=settings.protocol == "chat",
        fewshot_as_multiturn=True,
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = [s for s in found["samples"][TASK] if s["filter"] == FILTER]
    name = Path(settings.model).name
    rows = [_row(sample, model.answers) for sample in sorted(samples, key=lambda s: s["doc_id"])]
    return [row | {"model": name} for row in rows]


def _task(settings: Settings) -> str:
    """lm-eval's own task; always the first shots, so that every question has the same prompt."""
    import yaml

    own = resources.files("lm_eval") / "tasks" / "gsm8k" / "gsm8k.yaml"
    task: dict[str, Any] = yaml.safe_load(own.read_text())
    task |= {"task": TASK, "fewshot_config": {"sampler": "first_n", "split": "train"}}
    task.pop("tag", None)
    if settings.protocol == "chat":
        # The stop words end a completion that goes on with a question of its own. A chat ends by
        # itself, and its thoughts may hold them.
        task["generation_kwargs"] |= {"until": []}
    if settings.data is not None:
        files = {split: str((settings.data / name).resolve()) for split, name in SPLITS.items()}
        for path in files.values():
            if not os.path.isfile(path):
                raise Refused(f"{path}: not there; --data needs {' and '.join(SPLITS.values())}")
        task |= {"dataset_path": "json", "dataset_name": None}
        task["dataset_kwargs"] = {"data_files": files}
    return str(yaml.safe_dump(task))


def _row(sample: dict[str, Any], answers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    text, target = sample["resps"][0][0], sample["target"].rpartition("####")[2].strip()
    found = number(text)
    return {
        "doc_id": sample["doc_id"],
        "correct": found is not None and found == number(target),
        "invalid": found is None,
        **answers[_text(sample["arguments"][0][0])],
        "prediction": None if found is None else str(found),
        "target": target,
        "prompt_hash": sample["prompt_hash"],
        "text": text,
    }


def _text(prompt: Any) -> str:
    """Of a chat, lm-eval has it in a tuple: one of its own in requests, a plain one in samples."""
    return str(prompt if isinstance(prompt, str) else prompt[0])


def _client(settings: Settings, url: str) -> Any:
    """lm-eval's client of the protocol, with a transport that counts no failure as an answer."""
    import aiohttp
    from lm_eval.models import openai_completions
    from tqdm import tqdm

    chat = settings.protocol == "chat"
    kinds = (openai_completions.LocalCompletionsAPI, openai_completions.LocalChatCompletion)

    class Client(kinds[chat]):  # type: ignore[misc, valid-type]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.answers: dict[str, dict[str, Any]] = {}

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            if settings.index_topk:
                asyncio.run(self.refuse_short(requests))
            answered: list[str] = super().generate_until(requests, disable_tqdm)
            return answered

        async def refuse_short(self, requests: list[Any]) -> None:
            shortest, options = min((r.args for r in requests), key=lambda args: len(str(args[0])))
            limit = aiohttp.ClientTimeout(total=settings.request_seconds)
            async with aiohttp.ClientSession(timeout=limit) as session:
                probe = {**options, "max_gen_toks": 1}
                _, row = await self.ask(session, [shortest], probe)
            refuse_short_prompt(row["prompt_tokens"], settings)

        async def get_batched_requests(  # type: ignore[no-untyped-def]
            self, requests, cache_keys, *, gen_kwargs=None, **_
        ) -> list[list[str]]:
            slots = asyncio.Semaphore(settings.concurrency)
            limit = aiohttp.ClientTimeout(total=settings.request_seconds)
            with tqdm(total=len(requests), unit="question", desc="   asked") as bar:

                async def one(session, prompt) -> list[str]:  # type: ignore[no-untyped-def]
                    async with slots:
                        text, row = await self.ask(session, [prompt], gen_kwargs)
                    if settings.index_topk:
                        refuse_short_prompt(row["prompt_tokens"], settings)
                    self.answers[_text(prompt)] = row
                    bar.update()
                    return [text]

                async with aiohttp.ClientSession(timeout=limit) as session:
                    asked = [asyncio.create_task(one(session, prompt)) for prompt in requests]
                    try:
                        return await asyncio.gather(*asked)
                    except BaseException:  # the first failure ends the run: ask no more
                        for task in asked:
                            task.cancel()
                        await asyncio.gather(*asked, return_exceptions=True)
                        raise

        async def ask(self, session, messages, options) -> tuple[str, dict[str, Any]]:  # type: ignore[no-untyped-def]
            payload = self._create_payload(
                self.create_message(messages),
                generate=True,
                gen_kwargs=copy.deepcopy(options),
                seed=self._seed,
            )
            try:
                async with session.post(self.base_url, json=payload) as response:
                    if response.status != 200:
                        said = (await response.text())[:500]
                        raise RunFailed(f"{self.base_url} answered {response.status}: {said}")
                    answer = await response.json()
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
                raise RunFailed(f"{self.base_url}: {type(error).__name__}: {error}") from None
            return whole(answer, self.parse_generations, self.base_url)

    return Client(
        base_url=f"{url}/v1/{'chat/' if chat else ''}completions",
        model=settings.model,
        tokenizer_backend=None,
        tokenized_requests=False,
        num_concurrent=2,  # any number but 1, for which lm-eval takes a path of its own
        max_gen_toks=settings.max_tokens,
    )


def whole(answer: Any, text_of: Callable[[Any], list[str]], url: str) -> tuple[str, dict[str, Any]]:
    """The text of an answer, and what it says beside it. Raises RunFailed where it is not whole."""
    try:
        text = text_of(answer)[0]
        if not isinstance(text, str | None):
            raise TypeError(f"a text that is {text!r}")
        [choice], usage = answer["choices"], answer["usage"]
        row = {
            "finish_reason": choice["finish_reason"],
            "prompt_tokens": int(usage["prompt_tokens"]),
            "completion_tokens": int(usage["completion_tokens"]),
        }
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RunFailed(
            f"{url}: an answer without one choice, its text, finish_reason and usage ({error!r}): "
            f"{json.dumps(answer)[:300]}"
        ) from None
    if row["finish_reason"] not in FINISHED:
        raise RunFailed(
            f"{url}: a request ended by {json.dumps(row['finish_reason'])}, not by "
            f"{' or '.join(FINISHED)}: it was not answered, which is no wrong answer"
        )
    return text or "", row


def refuse_short_prompt(tokens: int, settings: Settings) -> None:
    if tokens <= settings.index_topk:
        raise Refused(
            f"a prompt of {tokens} tokens with {settings.shots} shots is not longer than "
            f"index_topk ({settings.index_topk}): sparse selection takes every token, and neither "
            "layernorm nor indexer would be tested; give more --shots (25 to 30 for GSM8K)"
        )
