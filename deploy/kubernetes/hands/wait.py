"""Keep the pod running until it is deleted. The first process of a container must handle the signal."""

import signal

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("here until the pod is deleted", flush=True)
signal.sigwait({signal.SIGTERM})
