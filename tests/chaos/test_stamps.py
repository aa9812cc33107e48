from tests.chaos.stamps import POISON, Reading, Seal, Unwrapped

SEAL, OTHER = Seal("waf", b"secret"), Seal("auth", b"secret")


def test_a_stamp_is_for_one_request_one_phase_and_one_agent() -> None:
    stamp = SEAL.stamp("t-1", "request", b"data")
    assert SEAL.read(stamp, "t-1", "request", b"data") is Reading.VALID
    assert SEAL.read(stamp, "t-2", "request", b"data") is Reading.FOREIGN
    assert SEAL.read(stamp, "t-1", "response", b"data") is Reading.FORGED
    assert SEAL.read(stamp, "t-1", "request", b"other") is Reading.FORGED
    assert OTHER.read(stamp, "t-1", "request", b"data") is Reading.FORGED
    assert Seal("waf", b"another secret").read(stamp, "t-1", "request", b"data") is Reading.FORGED
    assert SEAL.read(None, "t-1", "request", b"data") is Reading.MISSING


def test_what_was_wrapped_piece_by_piece_is_unwrapped_as_a_whole() -> None:
    body = SEAL.wrap("t-1", "request", b"one ") + SEAL.wrap("t-1", "request", b"two")
    assert SEAL.unwrap("t-1", "request", body) == Unwrapped(b"one two", 0, False, False, frozenset({Reading.VALID}))


def test_agents_wrap_what_others_have_wrapped() -> None:
    body = OTHER.wrap("t-1", "request", SEAL.wrap("t-1", "request", b"one"))
    outer = OTHER.unwrap("t-1", "request", body)
    assert outer.readings == {Reading.VALID}
    assert SEAL.unwrap("t-1", "request", outer.data).data == b"one"


def test_pieces_that_nobody_has_wrapped_are_counted() -> None:
    body = b"bare" + SEAL.wrap("t-1", "request", b"one") + OTHER.wrap("t-1", "request", b"two")
    unwrapped = SEAL.unwrap("t-1", "request", body)
    assert unwrapped.bare == len(b"bare" + OTHER.wrap("t-1", "request", b"two"))
    assert unwrapped.readings == {Reading.VALID}


def test_a_piece_that_is_wrapped_for_another_request_is_told() -> None:
    body = SEAL.wrap("t-2", "request", b"one")
    assert SEAL.unwrap("t-1", "request", body).readings == {Reading.FOREIGN}


def test_poison_within_a_wrapping_is_told() -> None:
    assert SEAL.unwrap("t-1", "request", SEAL.wrap("t-1", "request", POISON)).poisoned
    assert not SEAL.unwrap("t-1", "request", POISON).poisoned


def test_a_body_that_is_cut_in_a_piece_gives_what_there_is_of_it() -> None:
    body = SEAL.wrap("t-1", "request", b"one") + SEAL.wrap("t-1", "request", b"two")
    unwrapped = SEAL.unwrap("t-1", "request", body[:-1])
    assert (unwrapped.data, unwrapped.torn, unwrapped.bare) == (b"onetw", True, 0)
    for size in range(1, len(body)):
        cut = SEAL.unwrap("t-1", "request", body[:size])
        assert b"onetwo".startswith(cut.data)
        assert cut.bare == 0
        assert cut.readings <= {Reading.VALID}
