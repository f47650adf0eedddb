import pytest

from testbed.errors import HostError
from testbed.store.mirror import KEYRING, Mirror, choose_mirror

TARGETS = """\
stable stable https://packages.example/other
bookworm main http://mirror.example/debian/
bookworm contrib http://mirror.example/debian/
bookworm-updates main http://mirror.example/debian/
bookworm-security main http://mirror.example/debian-security/
nodistro main https://node.example/node
"""


def test_the_mirror_is_the_one_of_the_hosts_own_release() -> None:
    assert choose_mirror(TARGETS, "bookworm") == Mirror(
        main="http://mirror.example/debian", security="http://mirror.example/debian-security"
    )


def test_without_a_security_source_its_place_is_guessed() -> None:
    assert (
        choose_mirror("trixie main http://m.example/debian\n", "trixie").security == "http://m.example/debian-security"
    )


@pytest.mark.parametrize(("targets", "codename"), [("", "bookworm"), (TARGETS, "noble"), (TARGETS, "")])
def test_no_source_says_how_to_name_one(targets: str, codename: str) -> None:
    with pytest.raises(HostError, match="TESTBED_DEBIAN_MIRROR"):
        choose_mirror(targets, codename)


def test_only_what_debian_signed_is_accepted() -> None:
    lines = (
        Mirror(main="http://m/debian", security="http://m/sec").sources(("bullseye", "bullseye-security")).splitlines()
    )
    assert lines == [
        f"deb [arch=amd64 signed-by={KEYRING}] http://m/debian bullseye main",
        f"deb [arch=amd64 signed-by={KEYRING}] http://m/sec bullseye-security main",
    ]
