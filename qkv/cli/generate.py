"""qkv generate, qkv chat"""

import sys

HELP = """
qkv generate WHAT [PROMPT ...] [key=value ...]
qkv chat WHAT [key=value ...]

WHAT is a run (last, runs/NAME), a checkpoint folder or a hub id. A decoder writes on from the prompt, an encoder-decoder answers
it; several prompts are done as one batch. `chat` asks for prompts until you leave with Ctrl-D.

  qkv generate last "The meaning of"
  qkv generate last "A dog" tokens=300 temperature=0.7 top_p=0.9
  qkv generate runs/multi30k-... "A dog runs on the beach." beams=5

keys: tokens (200)  temperature (0.8; 0 is greedy)  top_k (0: all)  top_p (1)  repetition (1: none)  seed (0)
      beams (0)  penalty (1: length penalty of beams)  stop (a text that ends it; repeat for more)
      precision (fp32; bf16, int8, int4 read fewer bytes a token)  threads (all cores)  guess (0; how many tokens are guessed from the
      text's own n-grams and checked in one pass: the same answer, sooner where texts repeat themselves)
      picture (a .png file: where each word of the answer looked in the prompt, of an encoder-decoder)
"""
KEYS = (
    "tokens",
    "temperature",
    "top_k",
    "top_p",
    "repetition",
    "seed",
    "beams",
    "penalty",
    "stop",
    "precision",
    "threads",
    "guess",
    "picture",
)


def run(words, verb):
    from .main import options

    stop = [w.partition("=")[2] for w in words if w.startswith("stop=")]
    plain, given, _ = options([w for w in words if not w.startswith("stop=")], KEYS)
    if not plain:
        raise ValueError("name what shall write: a run (last), a folder or a hub id, e.g. qkv generate last")
    what, *prompts = plain
    for key, kind in {"tokens": int, "beams": int, "seed": int, "top_k": int, "threads": int, "guess": int}.items():
        if key in given and (not isinstance(given[key], kind) or isinstance(given[key], bool)):
            raise ValueError(f"{key}={given[key]!r}: must be a whole number")
    for key in ("temperature", "top_p", "repetition", "penalty"):
        if key in given and (not isinstance(given[key], (int, float)) or isinstance(given[key], bool) or not abs(given[key]) < 1e9):
            raise ValueError(f"{key}={given[key]!r}: must be a finite number")
    if not 0 <= given.get("seed", 0) < 2**63:
        raise ValueError(f"seed={given['seed']}: must be at least 0 and below 2^63")
    if not all(stop):
        raise ValueError("stop= is empty: give the text that ends the answer")
    for prompt in prompts:
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise ValueError("the prompt is not UTF-8 text") from None
    picture = given.pop("picture", None)
    if picture and len(prompts) != 1:
        raise ValueError("picture= is of one answer; give one prompt")
    most, beams, penalty = given.pop("tokens", 200), given.pop("beams", 0), given.pop("penalty", 1.0)
    precision, threads, guess = given.pop("precision", "fp32"), given.pop("threads", None), given.pop("guess", 0)
    if most < 1 or not 0 <= beams <= 256:
        raise ValueError(f"tokens={most}, beams={beams}: tokens must be at least 1, beams 0 to 256")
    import torch

    from ..generation import Sampling, complete, slide, stream
    from ..generation.text import encode
    from .common import open_model

    model, tokenizer, _ = open_model(what)
    verbs = {
        "SpeechEncoderDecoder": "transcribe",
        "SpeechEncoder": "transcribe",
        "SeeingDecoder": "caption",
        "TwoTowers": "classify",
        "ImageEncoder": "classify",
    }
    if (kind := type(model.config).__name__) not in ("Decoder", "Encoder", "EncoderDecoder", "Recurrent", "RecurrentEncoderDecoder"):
        raise ValueError(
            f"{what} is of {kind}, which writes on from no text; "
            + (f"try qkv {verbs[kind]}" if kind in verbs else "decoders and encoder-decoders do")
        )
    if type(model.config).__name__ == "Encoder":
        raise ValueError(f"{what} is an encoder: it reads both ways and cannot write on. Decoders and encoder-decoders can")
    if model.config.output != "lm":
        raise ValueError(f"{what} has output={model.config.output}; writing needs output=lm")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    pair = hasattr(model, "encode")
    if picture and not pair:
        raise ValueError(f"picture=: {what} reads no text beside the one it writes; an encoder-decoder does")
    plainly = model
    longest = max((len(encode(model, tokenizer, p)) for p in prompts), default=0)
    model = quick(model, precision, threads, longest + most)
    sampling = Sampling(**({"temperature": 0.0 if pair else 0.8} | given))
    told = set()

    def beyond(ids, context):
        """A decoder slides on, an answer ends; either way it is said, once."""
        if not told:
            told.add(True)
            how = "the answer ends there" if pair or beams else f"what follows goes by the last {context // 2} alone"
            print(f"\nnote: the context of {context} tokens is full; {how}", file=sys.stderr)
        return None if pair else slide(ids, context)

    if verb == "chat":
        return chat(lambda p: stream(model, tokenizer, p, sampling, most=most, stop=stop, guess=guess, beyond=beyond), pair)
    prompts = prompts or [""]
    if pair and prompts == [""]:
        raise ValueError('this model answers a text: give one, e.g. qkv generate last "A dog runs."')
    if len(prompts) == 1 and not beams:
        answer = ""
        for i, piece in enumerate(stream(model, tokenizer, prompts[0], sampling, most=most, stop=stop, guess=guess, beyond=beyond)):
            print((prompts[0] if i == 0 and not pair else "") + piece, end="", flush=True)
            answer += piece
        print()
        answers = [answer]
    else:
        answers = complete(model, tokenizer, prompts, sampling, most=most, beams=beams, penalty=penalty, stop=stop, beyond=beyond)
        for prompt, answer in zip(prompts, answers):
            print(answer if pair else prompt + answer)
    if picture:
        print(f"picture: {aligned(plainly, tokenizer, prompts[0], answers[0], picture)}")
    return 0


def aligned(model, tokenizer, source, answer, path):
    """A picture of where each token of an answer looked in its source."""
    from .. import pictures
    from ..generation.text import encode
    from ..interpret import alignment

    read, written = encode(model, tokenizer, source), tokenizer.encode(answer.strip())
    name = lambda i: tokenizer.decode([i]).strip() or tokenizer.token(i)
    looked = alignment(model, read, written)
    return pictures.matrix(path, looked, [name(i) for i in written], [name(i) for i in read], "written (row) looked at read (column)")


def quick(model, precision, threads, need=0):
    """The model as the compiled kernels take it, or, in fp32 where they cannot, the model itself. need: positions, where they are not
    a table's."""
    import torch

    from .. import native
    from ..generation.decoding import begin

    low = native.lower_if(model, precision, begin(model, [[0]])[1] or max(model.config.length, 4096, need), threads)
    if threads is not None:
        torch.set_num_threads(threads)
    if low is None:
        return model
    if low.error:
        print(
            f"note: weights in {precision}: {low.nbytes / 1e6:,.1f} MB, rounded by {100 * low.error:.2g} % (root mean square)",
            file=sys.stderr,
        )
    return low


def chat(answer, pair):
    print("write, and end with Enter; Ctrl-D leaves", file=sys.stderr)
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return 0
        if not prompt.strip():
            continue
        try:
            if not pair:
                print(prompt, end="")
            for piece in answer(prompt):
                print(piece, end="", flush=True)
            print()
        except ValueError as e:
            print(f"({e})")
        except KeyboardInterrupt:
            print()
