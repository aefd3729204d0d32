/** What a cgroup's path says of the container in it. */
export interface Container {
  /** 64 hexadecimal digits; empty outside of containers. */
  readonly containerId: string
  /** Empty outside of Kubernetes pods. */
  readonly podUid: string
}

/** docker-<id>.scope, cri-containerd-<id>.scope, crio-<id>.scope, libpod-<id>.scope, or the bare id below docker/ or a pod. */
const CONTAINER = /(?:^|[/-])([0-9a-f]{64})(?:\.scope)?(?=\/|$)/g
/** pod<uid>, and as systemd spells it kubepods-burstable-pod<uid with _>.slice. */
const POD = /(?:^|[/-])pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})(?=\.slice|\/|$)/

/** Container and pod of a cgroup path, as container runtimes and the kubelet name their groups. The innermost container wins. */
export function containerOf(cgroup: string): Container {
  const containers = [...cgroup.matchAll(CONTAINER)]
  return {
    containerId: containers.at(-1)?.[1] ?? '',
    podUid: POD.exec(cgroup)?.[1]?.replaceAll('_', '-') ?? '',
  }
}
