"""qkv transcribe"""

HELP = """
qkv transcribe WHAT FILE ... [key=value ...]

The words of sounds (wav, flac, ogg, opus, mp3, aiff, au, caf; any rate, stereo is mixed), by a run (last), a folder or a hub id: a Whisper, or a Conformer or
wav2vec 2.0 with CTC. A published Whisper hears the language, writes with times, and takes a sound of any length window by window.

  qkv transcribe last 7_jackson_0.wav
  qkv transcribe openai/whisper-tiny talk.mp3 words=true out=talk.json
  qkv transcribe openai/whisper-small rede.flac language=de task=translate
  qkv transcribe last jfk.flac picture=heard.png                   the spectrum, the times of words, and where each token looked

keys: language  task (transcribe or translate)  words (false; with the times of words)  beams (0; of CTC)  out (a .json file)  picture (a .png file)
"""
KEYS = ("language", "task", "words", "beams", "out", "picture")


def run(words, verb):
    import dataclasses
    import json
    from pathlib import Path

    from .common import model_and_files
    from .main import options

    plain, given, _ = options(words, KEYS)
    what, sounds = model_and_files(plain, "name a model and a sound: qkv transcribe last speech.wav")
    out, picture, timed = given.pop("out", None), given.pop("picture", None), given.pop("words", False)
    if not isinstance(timed, bool):
        raise ValueError(f"words={timed!r}: must be true or false")
    if not isinstance(given.get("beams", 0), int) or given.get("beams", 0) < 0:
        raise ValueError(f"beams={given['beams']!r}: must be a whole number of at least 0")
    if picture and len(sounds) > 1:
        raise ValueError("picture= is of one sound; give one")
    from ..generation import speech
    from ..words import track
    from .common import open_model

    model, tokenizer, _ = open_model(what)
    kind = type(model.config).__name__
    if kind not in ("SpeechEncoderDecoder", "SpeechEncoder") or model.config.output not in ("lm", "ctc"):
        raise ValueError(f"{what} is of {kind} with output={model.config.output}; a Whisper, or a Conformer with output=ctc, hears")
    everything = {}
    for sound in sounds:
        found = speech.transcribe(
            model, tokenizer, Path(sound), words=timed or bool(picture), progress=lambda x: track(x, "hearing"), **given
        )
        everything[sound] = [dataclasses.asdict(s) for s in found]
        before = f"{sound}: " if len(sounds) > 1 else ""
        for s in found:
            print(before + (f"[{clock(s.start)} - {clock(s.end)}] " if len(found) > 1 else "") + s.text)
            if timed:
                print("  " + "  ".join(f"{w} {a:.2f}-{b:.2f}" for w, a, b in s.words))
    if out:
        Path(str(out)).write_text(json.dumps(everything, ensure_ascii=False, indent=1), encoding="utf-8")
        print(f"{len(everything)} sounds are in {out}")
    if picture:
        from .. import pictures
        from ..data import audio

        wave = audio.samples(Path(sounds[0]), sounds[0])
        said = [w for s in everything[sounds[0]] for w in s["words"]]
        first = everything[sounds[0]][0]["text"] if everything[sounds[0]] else ""
        looked = speech.attention(model, tokenizer, Path(sounds[0]), first) if hasattr(model, "encode") and first else None
        print(f"picture: {pictures.spectrum(picture, audio.log_mel(wave), said, looked)}")
    return 0


def clock(seconds):
    return f"{int(seconds // 60)}:{seconds % 60:05.2f}"
