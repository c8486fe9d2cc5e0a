"""What libraries write to the file descriptor of stderr is told with the name of the file, once."""

import os

import pytest

from tools.common.native_messages import named_messages, read_with_name


def test_messages_have_the_name_of_the_file_and_are_told_once(capfd):
    for _ in range(2):
        with named_messages("a.mp3"):
            os.write(2, b"\nNote: Illegal header\nNote: Trying to resync...\n")
    with named_messages("b.mp3"):
        os.write(2, b"\rreading: 50%")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "a.mp3: Note: Illegal header Note: Trying to resync...\nafter\n"


def test_messages_before_an_error_are_told_and_stderr_is_as_it_was(capfd):
    with pytest.raises(ValueError), named_messages("c.mp3"):
        os.write(2, b"broken")
        raise ValueError
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "c.mp3: broken\nafter\n"


def test_only_messages_of_reading_have_the_name(capfd):
    def read():
        for number in range(2):
            os.write(2, b"read %d\n" % number)
            yield number

    for item in read_with_name("d.mp3", read()):
        os.write(2, b"used %d\n" % item)
    assert capfd.readouterr().err == "d.mp3: read 0\nused 0\nd.mp3: read 1\nused 1\n"
