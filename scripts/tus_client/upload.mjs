// Uploads FILE to ENDPOINT with the client in the folder CLIENT, and prints each request and what became of it.
import fs from 'node:fs';
import { createRequire } from 'node:module';

const [client, endpoint, file] = process.argv.slice(2);
const { Upload } = createRequire(import.meta.url)(client);

new Upload(fs.createReadStream(file), {
  endpoint,
  uploadSize: fs.statSync(file).size,
  retryDelays: [100, 200, 500, 1000, 2000, 5000],
  metadata: { filename: 'Räder.mp4', filetype: 'video/mp4', keep_frames: 'false' },
  onBeforeRequest: (request) => console.log(request.getMethod(), request.getHeader('Upload-Offset') ?? ''),
  onAfterResponse: (request, response) => console.log(response.getStatus(), response.getHeader('Boxreel-Job') ?? ''),
  onShouldRetry: () => true,
  onError: (error) => {
    console.error(String(error));
    process.exit(1);
  },
}).start();
