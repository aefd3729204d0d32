export * from './gen/tollward/admin/v1/admin_pb.ts'
export * from './gen/tollward/admin/v1/events_pb.ts'
