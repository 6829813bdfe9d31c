# SPDX-License-Identifier: Apache-2.0
"""Only what setup.cfg cannot say: setuptools reads cffi_modules from here alone."""

from setuptools import setup

setup(cffi_modules=["vswitch/fastpath/build.py:ffibuilder"])
