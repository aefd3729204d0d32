export { type Conflict, policyConflicts } from './domain/conflicts.ts'
export { REASONS, type Reason } from './domain/reasons.ts'
export { type SimulatedCaller, type SimulatedRequest, type Simulation, simulate } from './domain/simulate.ts'
