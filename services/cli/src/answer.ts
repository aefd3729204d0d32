/** A command was carried out and its answer is "no"; what there is to say was written. */
export class AnswerIsNo extends Error {}
