"""Augmentations as asked, by closed forms; the same bits for any hosts, threads and restarts."""

import json

import numpy as np
import pytest
import soundfile

from bljust_jax.common.errors import UserError
from bljust_jax.data.augment import chain, channel, recordings, reverb
from bljust_jax.data.corpus import Segment
from tests.helpers import corpora

RATE = 16000
TIME = np.arange(RATE) / RATE


def tone(hertz, level=8000.0):
    return np.round(level * np.sin(2 * np.pi * hertz * TIME)).astype(np.int16)


def power(audio):
    return float(np.mean(np.asarray(audio, np.float64) ** 2))


def decibels(above, below):
    return 10 * np.log10((power(above) + 1e-9) / (power(below) + 1e-9))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """noise/ with three recordings at two rates in two folders, rooms/ with one of two channels."""
    made, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    (made / "noise" / "music").mkdir(parents=True)
    (made / "rooms").mkdir()
    soundfile.write(made / "noise" / "a.wav", 0.1 * rng.standard_normal(5000), RATE)
    soundfile.write(made / "noise" / "b.flac", 0.1 * rng.standard_normal(30000), 8000)
    soundfile.write(made / "noise" / "music" / "c.ogg", 0.1 * rng.standard_normal(40000), RATE)
    decay = np.exp(-np.arange(2000) / 300) * rng.standard_normal(2000) * 0.1
    decay[40] = 0.9
    soundfile.write(made / "rooms" / "r.wav", np.stack([decay, 0 * decay], 1), RATE, "FLOAT")
    return made


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.0, 30.0])
@pytest.mark.parametrize("level", [800.0, 32000.0])
@pytest.mark.parametrize("voices", [0, 5])
def test_recordings_are_added_at_the_snr(snr_db, level, voices, folder):
    """Also where the sum would clip: the gain of the tone in the sum is known by projection."""
    found = recordings.Recordings(str(folder / "noise"), RATE, "field")
    rng = np.random.default_rng(1)
    added = recordings.babble(found, RATE, voices, rng) if voices else found.cut(RATE, rng)
    clean = tone(440, level)
    added -= clean * (clean.astype(float) @ added) / power(clean) / RATE  # orthogonal to it
    mixed = recordings.mix(clean, added.astype(np.float32), snr_db).astype(float)
    gain = (mixed @ clean) / (power(clean) * RATE)
    assert decibels(gain * clean, mixed - gain * clean) == pytest.approx(snr_db, abs=0.1)
    assert np.abs(mixed).max() <= 32767
    assert gain <= 1 + 1e-3


def test_a_short_recording_is_repeated_and_a_silent_one_adds_nothing(folder):
    found = recordings.Recordings(str(folder / "noise"), RATE, "field")
    assert len(found.cut(RATE * 3, np.random.default_rng(0))) == RATE * 3
    clean = tone(440)
    np.testing.assert_array_equal(recordings.mix(clean, np.zeros(RATE, np.float32), 5.0), clean)


def test_reverberation_keeps_length_energy_and_the_direct_sound(folder):
    rooms = recordings.Recordings(str(folder / "rooms"), RATE, "field")
    response = rooms.impulse(np.random.default_rng(0))
    assert np.argmax(np.abs(response)) == 40
    dry = np.random.default_rng(1).integers(-3000, 3000, 5000).astype(np.int16)
    wet = reverb.reverberate(dry, response)
    assert len(wet) == len(dry)
    assert power(wet) == pytest.approx(power(dry), rel=1e-3)
    expected = np.convolve(dry.astype(float), response)[40 : 40 + len(dry)]  # brute force
    expected *= np.sqrt(power(dry) / power(expected))
    assert np.abs(wet - expected).max() <= 1.0
    late = np.zeros(300, np.float32)
    late[250] = -0.5  # direct sound alone: the audio itself, whatever delay, sign and gain
    np.testing.assert_array_equal(reverb.reverberate(dry, -late), dry)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_telephone_passes_its_band_alone_and_without_delay(rate):
    time = np.arange(2 * rate) / rate

    def passed(hertz):
        audio = np.round(10000 * np.sin(2 * np.pi * hertz * time)).astype(np.int16)
        out = channel.telephone(audio, rate)
        inner = slice(rate // 2, -rate // 2)
        return decibels(out[inner], audio[inner]), np.abs(out[inner] - audio[inner].astype(int))

    for hertz in (100, 200, *(f for f in (3600, 6000) if f < rate / 2)):
        assert passed(hertz)[0] < -40
    for hertz in (400, 1000, 3200):
        gain, difference = passed(hertz)
        assert abs(gain) < 0.1
        assert difference.max() < 200  # of 10000: no delay of a sample


@pytest.mark.parametrize(("name", "least"), [("ULAW", 30.0), ("GSM610", 8.0)])
@pytest.mark.parametrize("samples", [RATE, RATE - 123, 50])
def test_a_codec_keeps_length_and_speech_band(name, least, samples):
    rng = np.random.default_rng(0)
    voice = sum(np.sin(2 * np.pi * 150 * h * TIME + rng.uniform(0, 6)) / h for h in range(2, 12))
    audio = np.round(6000 * voice).astype(np.int16)[:samples]
    coded = channel.codec(audio, RATE, name)
    assert coded.dtype == np.int16
    assert len(coded) == samples
    if samples > 1000:
        inner = slice(800, -800)
        assert decibels(audio[inner], coded[inner] - audio[inner].astype(float)) > least
        assert not np.array_equal(coded, audio)


def test_volume_is_in_decibels_of_amplitude_and_saturates():
    assert set(channel.volume(np.full(9, 1000, np.int16), -20.0)) == {100}
    assert set(channel.volume(np.full(9, -30000, np.int16), 6.0)) == {-32768}


# The chain

ON = {
    "noise_snr": (5.0, 20.0),
    "noise_share": 0.5,
    "babble_share": 0.5,
    "reverb_share": 0.5,
    "volume": (-6.0, 6.0),
    "telephone_share": 0.5,
    "codec_share": 0.5,
}


def data(tmp_path, **changes):
    return corpora.settings(tmp_path, **{"sample_rate": RATE, "noise_snr": (), **changes})


def everything(tmp_path, folder):
    places = {"noise": "noise", "babble": "noise", "reverb": "rooms"}
    return {**ON, **{name: str(folder / place) for name, place in places.items()}}


def test_nothing_changes_when_all_is_off(tmp_path):
    audio = tone(440)
    made = chain.Chain(data(tmp_path), 0)
    assert not made.steps
    assert made(audio, 1, 2, np.random.default_rng(0)) is audio


def test_draws_are_a_function_of_seed_item_and_draw(tmp_path, folder):
    settings = data(tmp_path, **everything(tmp_path, folder))
    audio = tone(440)

    def run(seed, key, draw):
        made = chain.Chain(settings, seed)
        return made(audio, key, draw, np.random.default_rng(9)).tobytes()

    keys = [(0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3)]
    found = [run(*key) for key in keys]
    assert found == [run(*key) for key in keys]
    assert len(set(found)) == len(keys)


def test_each_step_draws_alone(tmp_path, folder):
    """A gain drawn is the same whether or not noise is on."""
    audio = tone(440, 1000.0)
    alone = chain.Chain(data(tmp_path, volume=(-6.0, 6.0)), 0)
    both = data(tmp_path, volume=(-6.0, 6.0), noise=str(folder / "noise"), noise_snr=(60.0, 60.0))
    for draw in range(5):
        wanted = alone(audio, 7, draw, np.random.default_rng(0))
        found = chain.Chain(both, 0)(audio, 7, draw, np.random.default_rng(0))
        assert decibels(found, wanted) == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_items_is_augmented(share, tmp_path):
    made = chain.Chain(data(tmp_path, telephone_share=share), 0)
    audio = tone(6000)[:800]
    rng = np.random.default_rng(0)
    changed = sum(not np.array_equal(made(audio, key, 0, rng), audio) for key in range(200))
    spread = 4 * np.sqrt(200 * share * (1 - share))
    assert abs(changed - 200 * share) <= spread


def test_batches_have_the_same_bits_for_any_hosts_threads_and_restarts(tmp_path, folder):
    corpora.noise(tmp_path)
    settings = {**everything(tmp_path, folder), "sample_rate": corpora.RATE}
    segments = [Segment(0, 6, corpora.JOINT)]

    def batches(start, shard=(0, 1), **changes):
        made = corpora.load(tmp_path, multiple=2, **{**settings, **changes})
        return list(made.train_batches(segments, start, shard=shard))

    whole = batches(0, num_threads=1)
    again = batches(3, num_threads=4)
    halves = [batches(0, (n, 2), num_threads=2) for n in (0, 1)]
    plain = batches(0, **dict.fromkeys(("noise", "babble", "reverb"), ""), noise_snr=())
    for step, batch in enumerate(whole):
        for stream, rows in batch.items():
            parts = [half[step][stream]["audio"] for half in halves]
            np.testing.assert_array_equal(np.concatenate(parts), rows["audio"])
            if step >= 3:
                np.testing.assert_array_equal(again[step - 3][stream]["audio"], rows["audio"])
            lengths = plain[step][stream]["audio_lengths"]
            np.testing.assert_array_equal(lengths, rows["audio_lengths"])
    assert not np.array_equal(whole[0]["labelled"]["audio"], plain[0]["labelled"]["audio"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": "{}/none", "noise_snr": (5.0, 9.0)}, "expected a"),
        ({"reverb": "{}/empty"}, "config.data.reverb=.*no readable recording"),
        ({"babble": "{}/empty", "babble_snr": ()}, "needs config.data.babble_snr"),
        ({"noise": "{}/empty"}, "needs config.data.noise_snr"),
    ],
)
def test_mistakes_are_named(changes, message, tmp_path):
    (tmp_path / "empty").mkdir()
    corpora.noise(tmp_path)
    changes = {k: v.format(tmp_path) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(UserError, match=message):
        corpora.load(tmp_path, **{"noise_snr": (), **changes})


def test_a_silent_impulse_response_is_named(tmp_path):
    soundfile.write(tmp_path / "r.wav", np.zeros(500), RATE)
    rooms = recordings.Recordings(str(tmp_path), RATE, "config.data.reverb")
    with pytest.raises(UserError, match=r"r\.wav is silent or not finite"):
        rooms.impulse(np.random.default_rng(0))


def test_a_simulated_room_reverberates():
    """The direct sound arrives first, and later sound decays."""
    pytest.importorskip("pyroomacoustics", reason="needs pyroomacoustics, an optional package")
    response = reverb.room(3, RATE)
    first = int(np.argmax(np.abs(response)))
    assert not np.any(np.abs(response[: max(first - 200, 0)]) > 0.2 * np.abs(response[first]))
    energy = np.cumsum(response[::-1].astype(float) ** 2)[::-1]
    assert energy[len(energy) // 2] < 0.1 * energy[0]
    assert reverb.simulated(np.random.default_rng(0), RATE).dtype == np.float32


def test_a_manifest_is_a_source_of_noise(tmp_path, folder):
    rows = [{"audio_filepath": f"{name}", "duration": 0.2} for name in ("a.wav", "b.flac")]
    (folder / "noise" / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = recordings.Recordings(str(folder / "noise" / "some.jsonl"), RATE, "field")
    assert len(found.cut(2000, np.random.default_rng(0))) == 2000
