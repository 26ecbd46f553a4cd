"""Tiny models that can do small arithmetic in GSM8K's form, so that an accuracy means something.

    toy("minimax-m2").path      a checkpoint with its tokenizer, for sglang
    toy("minimax-m2").data      a folder with train.jsonl and test.jsonl, for ci/gsm8k.py --data

Trained in one or two minutes on a CPU (this file as a module), kept under build/ by all they depend
on. A question tells two numbers and whether they are added or subtracted; which number is which is
told by position alone, so that attention without the right rotation cannot answer.

"glm-5" has one NSA layer and prompts longer than index_topk. Its indexer is trained to keep what an
answer depends on, then words without a meaning, of which there are too many: what is left is
dropped, and with it whatever does not have its own index key.
"""

import functools
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.engine import kept
from tests.engine.checkpoints import CONFIGS, add_kv_scales, as_older_readers_expect

NAMES = ["Tom", "Ann", "Bob", "Eve", "Max", "Lea", "Jim", "Zoe"]
THINGS = ["apples", "pens", "books", "coins", "cards", "balls", "cups", "eggs"]
LARGEST = 18  # 9 + 9
QUESTIONS = 400
WORDS = (
    ["<unk>", "Question:", "\n\nQuestion:", "\nAnswer:", " ~"]
    + [f" {word}" for word in ["has", "and", "gives", "buys", ".", "How", "many", "?", "####"]]
    + [f" {word}" for word in NAMES + THINGS]
    + [f" {number}" for number in range(LARGEST + 1)]
)
ANSWER = " ####"
NEEDED = {ANSWER, " gives", " buys", *(f" {number}" for number in range(LARGEST + 1))}
VOCABULARY = 64
SIZE = {"vocab_size": VOCABULARY, "num_hidden_layers": 1, "max_position_embeddings": 4096}
TOYS = {
    "minimax-m2": CONFIGS["minimax-m2"] | SIZE,
    "qwen3-moe": CONFIGS["qwen3-moe"] | SIZE,
    "glm-5": CONFIGS["glm-5-long"] | SIZE | {"qk_nope_head_dim": 32, "v_head_dim": 32},
}
SHOTS_IN_TRAINING, BATCH, STEPS, RATE = 6, 10, 700, 4e-3
# Prompts past index_topk: NSA_SHOTS with words without a meaning before each, 2190 tokens. Some of
# these stand for all of them in training; with 4 and not 16 it was luck whether the indexer ranked
# those of a real prompt right.
NSA_SHOTS, FILLER, STAND_INS, INDEXER_STEPS = 4, 530, 16, 150
KV_SCALES = {"k": 0.11, "v": 0.037}


@dataclass(frozen=True)
class Toy:
    path: Path

    @property
    def data(self) -> Path:
        return self.path / "data"


@functools.cache
def toy(name: str) -> Toy:
    return Toy(kept.checkpoint(f"toy-{name}", "tests.regression.toy", name, TOYS[name]))


def problem(numbers: random.Random, filler: int = 0) -> dict[str, str]:
    """`filler`: words without a meaning before the question, for prompts past index_topk."""
    name, thing = numbers.choice(NAMES), numbers.choice(THINGS)
    a, b = numbers.randrange(10), numbers.randrange(10)
    if numbers.random() < 0.5:
        a, b = max(a, b), min(a, b)
        verb, answer = "gives", a - b
    else:
        verb, answer = "buys", a + b
    question = "~ " * filler + f"{name} has {a} {thing} and {verb} {b} . How many ?"
    return {"question": question, "answer": f"#### {answer}"}


def text(problems: list[dict[str, str]]) -> str:
    """As lm-eval joins shots."""
    return "\n\n".join(f"Question: {p['question']}\nAnswer: {p['answer']}" for p in problems)


def write_data(folder: Path, filler: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    numbers = random.Random("toy")
    for split, words in (("train", filler), ("test", 0)):
        rows = [problem(numbers, words) for _ in range(QUESTIONS)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def tokenizer():
    """One token a word, the white space before it included."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s*\S+"), "isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def build(name: str, path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    # So small a model gains nothing by more, and loses most of its time to them where the other
    # cores are busy, as with pytest-xdist's workers.
    torch.set_num_threads(1)
    config = AutoConfig.for_model(dtype=torch.float32, **TOYS[name])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    words = tokenizer()
    train(model, words, random.Random(1), far=name == "glm-5")
    if name == "glm-5":
        train_indexer(model, words, random.Random(2))
    model.to(torch.bfloat16).save_pretrained(path)
    as_older_readers_expect(path / "config.json")
    words.save_pretrained(path)
    settings = path / "tokenizer_config.json"  # the class by its name in the transformers of 0.5.9
    told = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(told, indent=1))
    write_data(path / "data", FILLER if name == "glm-5" else 0)
    if name == "minimax-m2":
        add_kv_scales(path, **KV_SCALES)


def batch(words, numbers: random.Random, filler: int):
    """BATCH rows of shots, half of these after `filler` words without a meaning."""
    import torch

    fillers = [numbers.choice((0, filler)) for _ in range(SHOTS_IN_TRAINING)]
    rows = [text([problem(numbers, each) for each in fillers]) for _ in range(BATCH)]
    return torch.tensor(words(rows)["input_ids"])


def train(model, words, numbers: random.Random, far: bool) -> None:
    import torch

    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, STEPS)
    for step in range(STEPS):
        tokens = batch(words, numbers, STAND_INS if far else 0)
        seen = far_apart(tokens) if far else {}
        logits = model(tokens, **seen, use_cache=False).logits[:, :-1]
        after = tokens[:, 1:]
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, VOCABULARY), after.reshape(-1), reduction="none"
        ).view_as(after)
        counted = tokens[:, :-1] == WORDS.index(ANSWER)
        begun = torch.nn.functional.pad(counted[:, 1:], (0, 1))  # what an answer follows
        ended = torch.nn.functional.pad(counted[:, :-1], (1, 0))  # the number, after which it stops
        around = loss[begun].mean() + loss[ended].mean()
        loss = loss[counted].mean() + 0.3 * around + 0.1 * loss.mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == STEPS - 1:
            right = (logits.argmax(-1) == after)[counted].float().mean()
            print(f"step {step}: loss {loss:.3f}, right {right:.3f}", flush=True)


def far_apart(tokens):
    """Positions [B, S] and a mask [B, 1, S, S] with which few fillers stand for many.

    One that moves the positions on by n weighs in attention as n do. An answer comes from no more
    than what the indexer will rank first and second.
    """
    import torch

    filler, needed = kinds(tokens)
    steps = torch.where(filler, torch.randint(1, 2 * FILLER // STAND_INS, tokens.shape), 1)
    asked = tokens == WORDS.index(ANSWER)
    hidden = asked[:, :, None] & ~(needed | filler)[:, None]
    later = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1).bool()
    mask = steps.log()[:, None].masked_fill(hidden | later, torch.finfo(torch.float32).min)
    return {"position_ids": steps.cumsum(1), "attention_mask": mask[:, None]}


def kinds(tokens):
    """Which are fillers, and which of the others an answer depends on."""
    import torch

    needed = [i for i, word in enumerate(WORDS) if word in NEEDED]
    return tokens == WORDS.index(" ~"), torch.isin(tokens, torch.tensor(needed))


def train_indexer(model, words, numbers: random.Random) -> None:
    """Teach the indexer to score what an answer depends on with 2, fillers with 1, the rest with 0.

    The rest of the model stays as it is.
    """
    import torch

    [layer] = model.model.layers
    attention, indexer = layer.self_attn, layer.self_attn.indexer
    rotary = attention.qk_rope_head_dim

    def rotated(x, table):
        cos, sin = (each[:, :, None] for each in table)
        first, second = x[..., :rotary].chunk(2, -1)
        turned = x[..., :rotary] * cos + torch.cat([-second, first], -1) * sin
        return torch.cat([turned, x[..., rotary:]], -1)

    optimiser = torch.optim.AdamW(indexer.parameters(), RATE)
    for step in range(INDEXER_STEPS):
        tokens = batch(words, numbers, STAND_INS)
        with torch.no_grad():
            hidden = layer.input_layernorm(model.model.embed_tokens(tokens))
            table = model.model.rotary_emb(hidden, far_apart(tokens)["position_ids"])
            low_rank = attention.q_a_layernorm(attention.q_a_proj(hidden))
        q = rotated(indexer.wq_b(low_rank).unflatten(-1, (indexer.n_heads, -1)), table)
        k = rotated(indexer.k_norm(indexer.wk(hidden))[:, :, None], table)[:, :, 0]
        heads = torch.einsum("bshd,btd->bsht", q, k).relu() * indexer.softmax_scale
        scores = torch.einsum("bsht,bsh->bst", heads, indexer.weights_proj(hidden))
        filler, needed = kinds(tokens)
        off = scores - (filler + 2.0 * needed)[:, None]
        loss = off.tril()[tokens == WORDS.index(ANSWER)].square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 25 == 0 or step == INDEXER_STEPS - 1:
            print(f"indexer {step}: loss {loss:.4f}", flush=True)


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
