"""Tiny models that can do small arithmetic in GSM8K's form, so that an accuracy means something.

    toy("minimax-m2").path      a checkpoint with its tokenizer, for sglang
    toy("minimax-m2").data      a folder with train.jsonl and test.jsonl, for ci/gsm8k.py --data

Trained in half a minute on a CPU (this file as a module), kept under build/ by all they depend on.
A question tells two numbers and whether they are added or subtracted; which number is which is
told by position alone, so that attention without the right rotation cannot answer. "glm-5" has
one NSA layer, and its indexer is trained to keep what attention looks at.
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
VOCABULARY = 64
SIZE = {"vocab_size": VOCABULARY, "num_hidden_layers": 1, "max_position_embeddings": 4096}
TOYS = {
    "minimax-m2": CONFIGS["minimax-m2"] | SIZE,
    "glm-5": CONFIGS["glm-5-long"] | SIZE | {"qk_nope_head_dim": 32, "v_head_dim": 32},
}
SHOTS_IN_TRAINING, BATCH, STEPS, RATE = 6, 10, 700, 4e-3
# Prompts past index_topk: 4 shots with words without a meaning before each, 2600 tokens. Trained
# with few of these, and with gaps between positions where the others will be.
NSA_SHOTS, NSA_FILLER, FILLER_IN_TRAINING = 4, 634, (0, 4, 8)
QUESTION_TOKENS, INDEXER_STEPS = 14, 100
KV_SCALES = {"k": 0.11, "v": 0.037}
# For this share of the steps attention is trained with its scores scaled by that, so that it is as
# sure over thousands of tokens as it was over a hundred.
SOFTENED, SOFT_STEPS = 0.5, 0.7


@dataclass(frozen=True)
class Toy:
    path: Path

    @property
    def long(self) -> Path:
        """The same questions; NSA_SHOTS of its shots are longer than index_topk."""
        return self.path / "long"

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
    config = AutoConfig.for_model(dtype=torch.float32, **TOYS[name])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    words = tokenizer()
    train(model, words, random.Random(1), far=name == "glm-5")
    if name == "glm-5":
        train_indexer(model, words, random.Random(2))
    model.to(torch.bfloat16).save_pretrained(path)
    as_older_readers_expect(path / "config.json")
    words.save_pretrained(path)
    write_data(path / "data")
    if name == "glm-5":
        write_data(path / "long", NSA_FILLER)
    else:
        add_kv_scales(path, **KV_SCALES)


def train(model, words, numbers: random.Random, far: bool) -> None:
    import torch

    answer_mark = WORDS.index(" ####")
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, STEPS)
    attentions = [layer.self_attn for layer in model.model.layers]
    for attention in attentions:
        attention.scaling *= SOFTENED
    for step in range(STEPS):
        if step == int(SOFT_STEPS * STEPS):
            for attention in attentions:
                attention.scaling /= SOFTENED
        few = numbers.choice(FILLER_IN_TRAINING) if far else 0
        fillers = [few] * (SHOTS_IN_TRAINING - 1) + [0]
        rows = [text([problem(numbers, each) for each in fillers]) for _ in range(BATCH)]
        tokens = torch.tensor(words(rows)["input_ids"])
        places = apart(tokens) if far else None
        logits = model(tokens, position_ids=places, use_cache=False).logits[:, :-1]
        after = tokens[:, 1:]
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, VOCABULARY), after.reshape(-1), reduction="none"
        ).view_as(after)
        counted = tokens[:, :-1] == answer_mark
        ended = torch.nn.functional.pad(counted[:, :-1], (1, 0))  # the number, after which it stops
        loss = loss[counted].mean() + 0.3 * loss[ended].mean() + 0.1 * loss.mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == STEPS - 1:
            right = (logits.argmax(-1) == after)[counted].float().mean()
            print(f"step {step}: loss {loss:.3f}, right {right:.3f}", flush=True)


def apart(tokens):
    """Positions [B, S] with gaps where half of the shots have their words without a meaning."""
    import torch

    begins = tokens == WORDS.index("\n\nQuestion:")
    begins[:, 0] = True
    gaps = torch.rand(begins.shape) * NSA_FILLER * 1.5 * (torch.rand(begins.shape) < 0.5)
    inside = torch.nn.functional.pad((begins * gaps).long(), (2, 0))[:, :-2]
    return torch.arange(tokens.shape[1]) + inside.cumsum(1)


def train_indexer(model, words, numbers: random.Random) -> None:
    """Teach the indexer to rank a question's own tokens above those of the shots before it.

    As a DSA indexer is warmed up: the rest stays as it is, the scores learn where attention looks.
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
        shots = [problem(numbers, NSA_FILLER) for _ in range(NSA_SHOTS)]
        tokens = torch.tensor([words(text([*shots, problem(numbers)]))["input_ids"]])
        asked = (tokens[0] == WORDS.index(" ####")).nonzero()[:, 0]
        with torch.no_grad():
            hidden = layer.input_layernorm(model.model.embed_tokens(tokens))
            table = model.model.rotary_emb(hidden, torch.arange(tokens.shape[1])[None])
            low_rank = attention.q_a_layernorm(attention.q_a_proj(hidden))
        q = indexer.wq_b(low_rank).unflatten(-1, (indexer.n_heads, indexer.head_dim))
        q = rotated(q, table)[0, asked]
        k = rotated(indexer.k_norm(indexer.wk(hidden))[:, :, None], table)[0, :, 0]
        heads = torch.einsum("shd,td->sht", q, k).relu() * indexer.softmax_scale
        scores = torch.einsum("sht,sh->st", heads, indexer.weights_proj(hidden[0, asked]))
        behind = asked[:, None] - torch.arange(tokens.shape[1])
        own = (behind >= 0) & (behind < QUESTION_TOKENS)
        chance = scores.masked_fill(behind < 0, -torch.inf).log_softmax(-1)
        loss = -chance[own].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 25 == 0 or step == INDEXER_STEPS - 1:
            lowest = scores.masked_fill(~own, torch.inf).amin(-1, keepdim=True)
            ranks = ((scores > lowest) & (behind >= 0)).sum(-1)
            print(f"indexer {step}: loss {loss:.2f}, lowest rank {ranks.max()}", flush=True)


def right(path: Path, shots: int, questions: int, data: str = "data") -> float:
    """The share of test questions that transformers answers with the checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    )
    words = AutoTokenizer.from_pretrained(path)
    train, test = (
        [json.loads(line) for line in (path / data / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    )
    found = 0
    for asked in test[:questions]:
        tokens = torch.tensor([words(text([*train[:shots], asked]))["input_ids"]])
        with torch.no_grad():
            said = model(tokens[:, :-1], use_cache=False).logits[0, -1].argmax()
        found += int(said == tokens[0, -1])
    return found / questions


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
