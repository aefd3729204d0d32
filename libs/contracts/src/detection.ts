export * from './gen/tollward/detection/v1/alert_pb.ts'
