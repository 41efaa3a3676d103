// The page's side of the worker: ask(question, about) gives a promise of the answer.

function startEngine() {
  const source = document.getElementById("engine").textContent;
  const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const waiting = new Map();
  let last = 0;
  worker.onmessage = ({ data: { id, answer, error, part } }) => {
    const { resolve, reject, progress } = waiting.get(id);
    if (part !== undefined) return progress?.(part);
    waiting.delete(id);
    error === undefined ? resolve(answer) : reject(new Error(error));
  };
  worker.onerror = ({ message }) => {
    for (const { reject } of waiting.values()) reject(new Error(message));
    waiting.clear();
  };
  return (ask, about = {}, progress) => new Promise((resolve, reject) => {
    waiting.set(++last, { resolve, reject, progress });
    worker.postMessage({ id: last, ask, about });
  });
}
