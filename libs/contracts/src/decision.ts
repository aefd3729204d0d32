export * from './gen/tollward/decision/v1/rates_pb.ts'
