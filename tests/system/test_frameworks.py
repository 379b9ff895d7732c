"""The lines for frameworks of others, with those that are light: tests/agents has all of them."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import need
from tests.support.command import Command
from tests.support.documents import ROOT
from tests.support.frameworks import NODE, Framework, play
