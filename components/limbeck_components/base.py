"""How every component is made: from limbeck's own image, where nothing is installed when it starts."""

import functools

from kfp import dsl

from limbeck.version import __version__

IMAGE = f"limbeck:{__version__}"  # where neither the spec nor the command line names another

component = functools.partial(dsl.component, base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
