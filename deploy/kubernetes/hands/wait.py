"""Keep the pod there until it is deleted: a container's first process has to ask for the signal."""

import signal

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("here until the pod is deleted", flush=True)
signal.sigwait({signal.SIGTERM})
