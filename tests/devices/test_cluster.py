"""bertgpt.devices.cluster: how processes find each other, and which of them speaks."""

import pathlib
import socket
import threading

import jax
import program
import pytest

from bertgpt.devices import cluster
from bertgpt.errors import ConfigError, PeerError


@pytest.fixture
def port():
  return program.free_port()


@pytest.mark.parametrize("asked", ["cuda,cpu", "cuda", "gpu,cpu"])
def test_gpus_that_were_asked_for_are_not_replaced_by_cpus(asked):
  """JAX passes over CUDA in silence if it sees no GPU."""
  if any(pathlib.Path("/dev").glob("nvidia*")):
    pytest.skip("this machine has a GPU")
  result = program.run_python(f"""
import os
os.environ["JAX_PLATFORMS"] = "{asked}"
from bertgpt.devices import cluster
from bertgpt.errors import DeviceError
try:
  cluster.count_devices()
except DeviceError as e:
  print(e)""")
  assert "JAX sees no GPU" in result.stdout or "cannot use the devices" in result.stdout, result


@pytest.mark.parametrize("message, is_lost", [
    ("INTERNAL: [4] Gloo all-reduce failed: Connection closed by peer", True),
    ("UNAVAILABLE: Failed to send RPC to coordination service.", True),
    ("INTERNAL: Barrier timed out. Id: save/20. This usually happens because a task triggered the "
     "barrier too early or too slowly.", True),
    ("INTERNAL: Shutdown barrier has failed.", True),
    ("INTERNAL: task 1 is already in error before the barrier was called. Barrier Id: x", True),
    ("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes. Operator: optimization_barrier", False),
    ("RESOURCE_EXHAUSTED: Out of memory\n%opt-barrier.3 = f32[8] opt-barrier(%x)", False),
    ("INTERNAL: ptxas failed at mbarrier.init in fusion OptimizationBarrier.7", False)])
def test_only_messages_about_other_processes_name_a_lost_peer(message, is_lost):
  with (pytest.raises(PeerError if is_lost else jax.errors.JaxRuntimeError),
        cluster.name_lost_peer()):
    raise jax.errors.JaxRuntimeError(message)


@pytest.mark.parametrize("spec", ["", "host", "host:1,2", "host:port,2,0", "host:1,2,2",
                                  "host:1,2,-1"])
def test_a_malformed_address_is_refused(spec):
  with pytest.raises(ConfigError, match="--distributed="):
    cluster.start_distributed(spec, 1)


def test_a_taken_port_is_refused(port):
  with socket.create_server(("", port)), pytest.raises(ConfigError, match=f"port {port} is taken"):
    cluster.start_distributed(f"127.0.0.1:{port},2,0", 1)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_processes_of_several_hosts_meet_at_addresses_of_both_kinds(port, address):
  """Process 0 listens at all addresses, as it does if HOST is not a loopback address."""
  try:
    socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET
                         ).close()
  except OSError:
    pytest.skip("this machine has no such addresses")
  first = threading.Thread(target=cluster._await_peers, args=("", port, 2, 60))
  first.start()
  try:
    cluster._await_first(address, port, 1, 60)
  finally:
    first.join()


def test_process_0_names_who_is_missing(port):
  errors = []

  def report():
    try:
      cluster.start_distributed(f"127.0.0.1:{port},4,2", 1200)
    except PeerError as e:
      errors.append(str(e))

  peer = threading.Thread(target=report)
  peer.start()
  with pytest.raises(PeerError, match="no message from process 1, 3 of 4"):
    cluster.start_distributed(f"127.0.0.1:{port},4,0", 5)
  peer.join()
  assert len(errors) == 1 and "gave up" in errors[0]


def test_a_missing_process_0_is_an_error(port):
  with pytest.raises(PeerError, match="no answer from process 0"):
    cluster.start_distributed(f"127.0.0.1:{port},2,1", 1)


@pytest.mark.parametrize("host, found", [
    ("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.0.1", True),
    ("0.0.0.0", False), ("10.1.2.3", False), ("no.such.host.invalid", False)])
def test_loopback_addresses(host, found):
  assert cluster.is_loopback(host) is found


def test_the_own_name_is_not_a_loopback_address(monkeypatch):
  """Debian writes it next to 127.0.1.1, and other hosts know it by another address."""
  monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: [
      (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))])
  assert not cluster.is_loopback("node0")


def test_a_run_on_the_loopback_listens_there_only(port):
  """This holds for the port where the processes meet, and for JAX's coordinator."""
  code = ("import sys\nfrom bertgpt.devices import cluster\n"
          "def listening():\n"
          "  files = [open(f'/proc/net/{name}') for name in ('tcp', 'tcp6')]\n"
          "  rows = [line.split() for file in files for line in file]\n"
          f"  return {{row[1].split(':')[0] for row in rows if row[1].endswith(':{port:04X}')\n"
          "          and row[3] == '0A'}\n"
          "wait = cluster._await_peers\n"
          "def look(*arguments):\n"
          "  create = cluster.socket.create_server\n"
          "  def create_and_look(*a, **k):\n"
          "    server = create(*a, **k); print(sorted(listening())); return server\n"
          "  cluster.socket.create_server = create_and_look\n"
          "  wait(*arguments)\n"
          "cluster._await_peers = look\n"
          f"cluster.start_distributed('127.0.0.1:{port},1,0', 200)\n"
          "print(sorted(listening()))")
  result = program.run_python(code)
  assert result.returncode == 0, result.stderr
  addresses = result.stdout.split()
  # Little-endian; the second form is the same address as IPv6.
  assert addresses[0] == "['0100007F']"
  assert addresses[1] in ("['0100007F']", "['0000000000000000FFFF00000100007F']")


@pytest.mark.parametrize("index, written", [(0, "note: a\nnote: b\n"), (1, "")])
def test_only_process_0_says_what_all_know(monkeypatch, capsys, index, written):
  monkeypatch.setattr(jax, "process_index", lambda: index)
  cluster.say_once("note: a", "", "note: b")
  assert capsys.readouterr().err == written
