// Prints 10,000 keys (hex), Java's hash, and the partition of 1, 3 and 72:
//   java -cp '<the broker's lib>/*' Murmur2.java > java.txt
import java.util.Random;
import org.apache.kafka.common.utils.Utils;

public class Murmur2 {
    public static void main(String[] words) {
        Random random = new Random(4);
        StringBuilder out = new StringBuilder();
        for (int i = 0; i < 10000; i++) {
            byte[] key = new byte[1 + random.nextInt(i < 9900 ? 24 : 300)];
            random.nextBytes(key);
            for (byte b : key) out.append(String.format("%02x", b));
            int hash = Utils.murmur2(key);
            out.append(' ').append(hash);
            for (int count : new int[] {1, 3, 72}) out.append(' ').append(Utils.toPositive(hash) % count);
            out.append('\n');
        }
        System.out.print(out);
    }
}
