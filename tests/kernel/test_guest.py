"""The machine that this tier runs in."""

import os


def test_it_is_a_debian_kernel_with_esp() -> None:
    release = os.uname().release
    assert os.path.isdir(f"/lib/modules/{release}")
    with open("/proc/modules") as modules:
        loaded = {line.split()[0] for line in modules}
    assert {"esp4", "esp6", "ah4", "ah6", "xfrm_user", "xfrm_interface"} <= loaded
