import assert from 'node:assert/strict'
import { test } from 'node:test'
import { containerOf } from './owner.ts'

const ID = '0123456789abcdef'.repeat(4)
const OTHER = 'fedcba9876543210'.repeat(4)
const POD = '8f6a1c2e-3b4d-4e5f-8a9b-0c1d2e3f4a5b'
const SYSTEMD_POD = POD.replaceAll('-', '_')

test('container and pod are read from the groups of docker, containerd, CRI-O, podman and the kubelet', () => {
  const slice = `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod${SYSTEMD_POD}.slice`
  const cases: [string, string, string][] = [
    [`/docker/${ID}`, ID, ''],
    [`/system.slice/docker-${ID}.scope`, ID, ''],
    [`/machine.slice/libpod-${ID}.scope/container`, ID, ''],
    [`/kubepods/besteffort/pod${POD}/${ID}`, ID, POD],
    [`/kubepods/pod${POD}/${ID}`, ID, POD],
    [`${slice}/cri-containerd-${ID}.scope`, ID, POD],
    [`${slice}/crio-${ID}.scope`, ID, POD],
    [`${slice}`, '', POD],
    // A container in a container: the inner one is whose the process is.
    [`/docker/${ID}/docker/${OTHER}`, OTHER, ''],
  ]
  for (const [cgroup, containerId, podUid] of cases)
    assert.deepEqual(containerOf(cgroup), { containerId, podUid }, cgroup)
})

test('what only looks like a container or pod is none', () => {
  const none = { containerId: '', podUid: '' }
  for (const cgroup of [
    '',
    '/',
    '/system.slice/nginx.service',
    `/user.slice/${ID}0`,
    `/user.slice/x${ID}`,
    `/docker/${ID.slice(1)}`,
    `/docker/${ID.toUpperCase()}`,
    `/podcast/pod-${POD}`,
    `/pod${POD}0`,
  ])
    assert.deepEqual(containerOf(cgroup), none, cgroup)
})
