"""Keep the pod there until it is deleted: a container's first process has to ask for the signal."""

import signal

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
signal.sigwait({signal.SIGTERM})
