"""How far a bundle that was exported from a GGUF file is from what llama.cpp makes of the same file.

    pip install llama-cpp-python
    swift-edge export MODEL.gguf --out BUNDLE && python tests/bench/gguf_agreement.py MODEL.gguf BUNDLE

Prints how many of 500 texts have the same token ids, and the negative log-likelihood of a text in nats a token.
llama.cpp rounds activations to 8 bits where weights are quantised, so that the second is not exactly the same: on short
texts it may differ by a hundredth, which a file of the same weights in F32 does not.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import llama_cpp
import numpy as np

from swift_edge.bundle.folder import open_bundle
from swift_edge.bundle.tokenizer import Tokenizer
from swift_edge.engine.session import ModelSession

TEXTS = 500
SHOWN = 5
SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "I've said it's theirs; they'd've WE'LL don'T 'S 'tis o'clock",
    "Der Mühlenbach fließt über große Steine: Äpfel, Öl und Übermut.",
    "L'été dernier, j'ai mangé une crêpe à Besançon ; ça coûtait 3 €.",
    "El niño comió piñas en São Paulo, ¿verdad? ¡Sí!",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "שלום עולם, מה שלומך היום?",
    "مرحبا بالعالم، كيف حالك اليوم؟ ١٢٣٤٥",
    "نمونه‌ای از متن فارسی با نیم‌فاصله",
    "नमस्ते दुनिया, आप कैसे हैं? १२३",
    "வணக்கம் உலகம்",
    "สวัสดีชาวโลก วันนี้อากาศดี",
    "今天天气很好,我们去公园散步吧。",
    "臺灣的夏天很熱，請多喝水！",
    "吾輩は猫である。名前はまだ無い。カタカナとひらがな。",
    "안녕하세요 세계, 오늘 날씨가 좋네요.",
    "Xin chào thế giới, hôm nay trời đẹp quá!",
    "e\u0301 a\u0308 n\u0303 o\u0302\u0323 Z\u0351\u036b\u0343a\u0334l\u0300g\u0301o\u0489",
    "😀😃🚀 👩‍👩‍👧‍👦 🇩🇪🇯🇵 👍🏽 ❤️ ☕️ ✈",
    "0 1 12 123 1234 12345 3.14159 1,000,000 0x1F 1e-9 ½ ² ⅷ ①",
    "def f(x: int) -> list[int]:\n    return [y ** 2 for y in range(x) if y % 2 == 0]\n",
    "\tif (a && b || !c) {\n\t\treturn x->y[i++] += 0x7f;\n\t}\r\n",
    "<div class=\"x\">&nbsp;<a href='#'>link</a></div>",
    "SELECT * FROM t WHERE id = 'a''b' -- comment",
    '{"key": [1, 2.5, null, true], "nested": {"a": "\\u00e9"}}',
    "https://example.org/path?q=1&r=%20#frag user@example.org",
    r"$\frac{1}{2} \sum_{i=0}^{n} x_i^2 \leq \boxed{42}$",
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n* item\n  1. nested",
    "   leading and trailing   ",
    "a  b   c    d     e                    f",
    "\n\n\n",
    "\r\n\r\n \t \n",
    "\u00a0non\u2003breaking\u3000spaces\u200bzero\u200dwidth",
    "ﬁ ﬂ Ⅳ ™ ℃ Ａｂｃ １２３",
    "...!!!???---___***###@@@",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "ThisIsCamelCase and snake_case and SCREAMING_CASE and kebab-case",
    "\U0001d573\U0001d58a\U0001d591\U0001d591\U0001d594 \U00010348 \U00020000 \ufffd",
    "▁ a literal block ▁▁ and Ġ and Ċ",
    "x",
    " ",
)
SEPARATORS = ("", " ", "  ", "\n", "\n\n", "\t", " \n ", ", ", "      ")
PROSE = Path(__file__).parents[2] / "docs" / "security.md"
PROSE_TOKENS = 1000


def texts(specials: list[str]) -> list[str]:
    """Texts in many languages, alone and put together at random, some with special tokens in them."""
    draw = random.Random(0)
    found = [*SAMPLES]
    while len(found) < TEXTS:
        parts = draw.choices(SAMPLES, k=draw.randint(1, 4))
        if specials and draw.random() < 0.25:
            parts.insert(draw.randrange(len(parts) + 1), draw.choice(specials))
        cut = draw.randrange(3)  # texts that break off within a word, too
        text = draw.choice(SEPARATORS).join(parts)
        found.append(text[draw.randrange(5) : -draw.randint(1, 5)] if cut == 0 else text)
    return found


def require_same_ids(model: llama_cpp.Llama, tokenizer: Tokenizer) -> None:
    backend = tokenizer._backend
    specials = [entry.content for entry in backend.get_added_tokens_decoder().values()]
    specials = random.Random(1).sample(specials, min(40, len(specials)))
    wrong = 0
    for text in texts(specials):
        theirs = model.tokenize(text.encode(), add_bos=False, special=True)
        ours = backend.encode(text, add_special_tokens=False).ids
        if theirs == ours:
            continue
        wrong += 1
        if wrong <= SHOWN:
            place = next(
                at for at, pair in enumerate(zip([*theirs, -1], [*ours, -1], strict=False)) if len(set(pair)) > 1
            )
            print(f"  {text!r:.100}: from {place} on {ours[place : place + 6]}, llama.cpp {theirs[place : place + 6]}")
    print(f"token ids: {TEXTS - wrong} of {TEXTS} texts the same")


def loss(logits: np.ndarray, ids: list[int]) -> float:
    """Mean negative log-likelihood of each token after the first, from logits [t, v]."""
    losses = []
    for row, following in zip(logits, ids[1:], strict=False):
        largest = float(row.max())
        losses.append(largest + np.log(np.exp(row.astype(np.float64) - largest).sum()) - float(row[following]))
    return float(np.mean(losses))


def compare_losses(model: llama_cpp.Llama, session: ModelSession, ids: list[int]) -> None:
    model.reset()
    model.eval(ids)
    theirs = loss(model.scores[: len(ids)], ids)
    given = session.prefill(session.new_cache(1, len(ids)), ids, logits="all").logits
    assert given is not None
    ours = loss(given, ids)
    print(f"loss over {len(ids) - 1} tokens: {ours:.4f}, llama.cpp {theirs:.4f}, difference {ours - theirs:+.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the GGUF file")
    parser.add_argument("bundle", type=Path, help="what was exported from it")
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    tokenizer = Tokenizer(bundle)
    model = llama_cpp.Llama(str(arguments.model), n_ctx=1024, n_batch=1024, logits_all=True, verbose=False)
    require_same_ids(model, tokenizer)
    prose = PROSE.read_text(encoding="utf-8")[: 6 * PROSE_TOKENS]
    ids = tokenizer.encode_prompt(prose, raw=True)
    if ids != model.tokenize(prose.encode(), add_bos=True, special=True):
        print("the text has other ids with BOS")
    ids = ids[:PROSE_TOKENS]
    compare_losses(model, ModelSession(bundle), ids)


if __name__ == "__main__":
    main()
