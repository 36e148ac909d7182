"""How every component is made: from limbeck's own image, where nothing is installed when it starts."""

import functools

from kfp import dsl

from limbeck.cluster import IMAGE

component = functools.partial(dsl.component, base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
