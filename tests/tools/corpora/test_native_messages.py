"""What libraries write to the file descriptor of stderr is told with the name of the file, once."""

import os

import pytest

from tools.corpora.native_messages import named_messages


def test_messages_have_the_name_of_the_file_and_are_told_once(capfd):
    for _ in range(2):
        with named_messages("a.mp3"):
            os.write(2, b"\nNote: Illegal header\nNote: Trying to resync...\n")
    with named_messages("b.mp3"):
        pass
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "a.mp3: Note: Illegal header Note: Trying to resync...\nafter\n"


def test_an_error_leaves_stderr_as_it_was(capfd):
    with pytest.raises(ValueError), named_messages("c.mp3"):
        os.write(2, b"broken")
        raise ValueError
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
