# Of the service alone, which names it: it loads programs into the kernel and reads a file of rules, and does nothing else.
# The command as an administrator runs it is not confined: detach takes off what another user pinned.
abi <abi/3.0>,
include <tunables/global>

profile tollward-archsec flags=(attach_disconnected) {
  include <abstractions/base>
  include <abstractions/nameservice>

  capability bpf,
  capability net_admin,
  capability perfmon,

  network inet stream,
  network inet6 stream,
  network inet dgram,
  network inet6 dgram,
  network netlink raw,
  network netlink dgram,
  network unix stream,

  signal (receive) peer=unconfined,

  /usr/bin/tollward-archsec r,
  /{,usr/}bin/{sh,dash,bash,dirname,readlink} mrix,
  /usr/lib/tollward-archsec/ r,
  /usr/lib/tollward-archsec/** mr,
  /usr/lib/tollward-archsec/bin/node mrix,
  /etc/tollward-archsec/ r,
  /etc/tollward-archsec/** r,
  /etc/ssl/openssl.cnf r,
  /var/lib/tollward-archsec/ r,
  /var/lib/tollward-archsec/** rwk,
  /run/tollward-archsec/ r,
  /run/tollward-archsec/** rwk,
  /run/tollward-archsec-bpf/ rw,
  /run/tollward-archsec-bpf/** rwk,

  # Where nftables stands in for the programs.
  /{,usr/}sbin/nft mrix,
  /etc/iproute2/** r,

  @{sys}/kernel/btf/** r,
  @{sys}/fs/bpf/ r,
  @{sys}/fs/cgroup/** r,
  @{sys}/class/net/ r,
  @{sys}/devices/** r,
  @{sys}/bus/event_source/devices/ r,
  @{PROC}/ r,
  @{PROC}/filesystems r,
  @{PROC}/version_signature r,
  @{PROC}/sys/kernel/** r,
  @{PROC}/sys/vm/overcommit_memory r,
  @{PROC}/@{pid}/** r,
  owner @{PROC}/@{pid}/task/** rw,

  include if exists <local/tollward-archsec>
}
