import java.util.Random;

/** Records that are kept up to date, and garbage beside them. Prints {@code ready} when it holds all it will hold. */
public final class Churn {
    private static final int RECORDS = 620_000;
    private static final int TICK_MS = 50;
    private static final int UPDATES_PER_TICK = 200;
    private static final int GARBAGE_PER_TICK = 1 << 20;
    private static final int PIECE = 4096;
    private static final String[] WORDS = {
        "amber", "basalt", "cedar", "delta", "ember", "fjord", "granite", "harbor", "island", "jetty", "keel", "lagoon",
        "mast", "north", "oar", "pier", "quay", "rudder", "sail", "tide", "umber", "vessel", "wharf", "yard",
    };
    /** What dies young is looked at for a while, or the compiler would not make it. */
    private static final byte[][] RECENT = new byte[64][];

    private record Entry(long id, String owner, String note, double[] amounts) {}

    private static Entry entry(Random chance, long id) {
        StringBuilder note = new StringBuilder();
        for (int n = 0; n < 90; n++) {
            note.append(WORDS[chance.nextInt(WORDS.length)]).append(chance.nextInt(100)).append(' ');
        }
        double[] amounts = new double[16];
        for (int n = 0; n < amounts.length; n++) {
            amounts[n] = chance.nextInt(1_000_000) / 100.0;
        }
        return new Entry(id, "owner-" + chance.nextInt(RECORDS), note.toString(), amounts);
    }

    public static void main(String[] arguments) throws InterruptedException {
        Random chance = new Random(1);
        Entry[] entries = new Entry[RECORDS];
        for (int n = 0; n < RECORDS; n++) {
            entries[n] = entry(chance, n);
        }
        System.gc();
        System.out.println("ready");
        long due = System.currentTimeMillis();
        while (true) {
            for (int n = 0; n < UPDATES_PER_TICK; n++) {
                int at = chance.nextInt(RECORDS);
                entries[at] = entry(chance, at);
            }
            for (int made = 0; made < GARBAGE_PER_TICK; made += PIECE) {
                byte[] piece = new byte[PIECE];
                chance.nextBytes(piece);
                RECENT[chance.nextInt(RECENT.length)] = piece;
            }
            due += TICK_MS;
            Thread.sleep(Math.max(0, due - System.currentTimeMillis()));
        }
    }
}
